"""What the SDK says of the daemon is what the daemon says of itself."""

from __future__ import annotations

from typing import Any

import pytest
from ms_enclave import _status as sdk_status
from ms_enclave import errors as sdk_errors
from ms_enclave.sandbox.boxes.docker import COMMAND_TOOL
from ms_enclave.sandbox.tools import ToolFactory

from enclaved import errors, status
from enclaved.tools.registry import ToolRegistry
from enclaved.tools.shell_executor import CommandTool

EXAMPLES: dict[type[errors.EnclaveError], errors.EnclaveError] = {
    errors.InvalidRequest: errors.InvalidRequest.of("spec.memory", "must be more"),
    errors.PolicyDenied: errors.PolicyDenied("memory", "spec.memory_limit_bytes", "too much", "512 MiB"),
    errors.Unauthenticated: errors.Unauthenticated("no token"),
    errors.SandboxNotFound: errors.SandboxNotFound("box"),
    errors.ExecutionNotFound: errors.ExecutionNotFound("run"),
    errors.ToolNotFound: errors.ToolNotFound("nope", ("a", "b")),
    errors.ImageNotFound: errors.ImageNotFound("img", "build it"),
    errors.PathNotFound: errors.PathNotFound("/x"),
    errors.SandboxExists: errors.SandboxExists("box"),
    errors.RequestEnded: errors.RequestEnded("4711", "box"),
    errors.RevisionGone: errors.RevisionGone(5, 5000),
    errors.PathExists: errors.PathExists("/x"),
    errors.UploadGap: errors.UploadGap("/x", 17),
    errors.WrongState: errors.WrongState("sandbox box", "stopped", "running", "start it first"),
    errors.ImageUnusable: errors.ImageUnusable("img", "it has no Python"),
    errors.PathUnusable: errors.PathUnusable("/x", "is a directory"),
    errors.EngineRefused: errors.EngineRefused("start", "no"),
    errors.OffsetReleased: errors.OffsetReleased("stdout", 1, 5),
    errors.LimitReached: errors.LimitReached("sandboxes", "10", "as many as there may be", 1.5),
    errors.NoSpace: errors.NoSpace("/x", "full"),
    errors.EngineUnavailable: errors.EngineUnavailable("docker", "does not answer"),
    errors.GuestUnavailable: errors.GuestUnavailable("not connected", 0.5),
    errors.TokensUnavailable: errors.TokensUnavailable(),
    errors.ShuttingDown: errors.ShuttingDown(),
    errors.SandboxLost: errors.SandboxLost("box", "it died"),
    errors.NotServed: errors.NotServed("terminal"),
    errors.PoolNotFound: errors.PoolNotFound("pool"),
    errors.ContextNotFound: errors.ContextNotFound("analysis", "box"),
    errors.PoolBusy: errors.PoolBusy("pool", "no member was free", 2.0),
}


def test_there_is_an_example_of_every_error() -> None:
    assert set(EXAMPLES) == set(status.TABLE)


@pytest.mark.parametrize("error", EXAMPLES.values(), ids=lambda error: type(error).__name__)
def test_an_error_arrives_as_the_class_of_the_same_name(error: errors.EnclaveError) -> None:
    sent = status.to_status(error)
    found = sdk_status.error_of(sent.code, sent.message, sent.SerializeToString())
    assert type(found) is getattr(sdk_errors, type(error).__name__)
    assert str(found) == str(error)
    assert found.metadata == dict(error.metadata)
    assert found.retry_after_s == getattr(error, "retry_after_s", None)
    violations = [(v.field, v.description, v.reason) for v in getattr(error, "violations", ())]
    assert [(v.field, v.description, v.reason) for v in found.violations] == violations


def test_a_fault_of_ours_arrives_with_its_log_id() -> None:
    sent = status.internal_status("abc")
    found = sdk_status.error_of(sent.code, sent.message, sent.SerializeToString())
    assert isinstance(found, sdk_errors.InternalError)
    assert found.metadata == {"log_id": "abc"}


def test_commands_have_the_daemon_s_name() -> None:
    assert CommandTool.name == COMMAND_TOOL


@pytest.mark.parametrize("name", ToolFactory.get_available_tools())
def test_the_sdk_describes_tools_as_the_daemon_does(name: str) -> None:
    (described,) = [tool for tool in ToolRegistry.built_in().descriptions() if tool.name == name]

    def plain(schema: Any) -> Any:
        parameters = schema["function"]["parameters"]
        defaults = {key: value.get("default") for key, value in parameters["properties"].items()}
        return parameters["required"], defaults, schema["function"]["description"]

    assert plain(ToolFactory.create_tool(name).schema) == plain(described.schema)
