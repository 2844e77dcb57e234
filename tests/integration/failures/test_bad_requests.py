"""Requests that make no sense, over the SDK: each is refused with the field and the way out, and the rest goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ms_enclave.errors import (
    EnclaveError,
    ImageNotFound,
    InvalidRequest,
    PathUnusable,
    PolicyDenied,
    SandboxNotFound,
    ToolNotFound,
)
from ms_enclave.sandbox.boxes import Sandbox
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import ExecutionStatus, SandboxType

MIB = 1024 * 1024
HALF = "\ud800"


def says(error: pytest.ExceptionInfo[EnclaveError], *words: str) -> None:
    """The text names what it should, is short enough to be read, and has nothing of our insides."""
    text = str(error.value)
    assert [word for word in words if word not in text] == [], text
    assert len(text) < 1000
    assert "Traceback" not in text
    assert 'File "' not in text


# -- what to run in ----------------------------------------------------------------------------------------------


NO_SUCH_IMAGE = "sha256:" + "0" * 64
"""No engine asks a registry for one of these."""


async def test_an_unknown_image_is_refused_with_three_ways_out(manager: LocalSandboxManager):
    with pytest.raises(ImageNotFound) as caught:
        await manager.create_sandbox(SandboxType.DOCKER, {"image": NO_SUCH_IMAGE})
    says(caught, NO_SUCH_IMAGE, "scripts/build-image", "docker pull", "images.aliases")
    assert caught.value.metadata["image"] == NO_SUCH_IMAGE
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("image", ["UPPER CASE", "x\0y", "../../etc/passwd", "a" * 5000, "--privileged", "a:b:c"])
async def test_what_is_no_name_of_an_image_never_reaches_the_engine(manager: LocalSandboxManager, image: str):
    with pytest.raises((InvalidRequest, ImageNotFound, PolicyDenied)) as caught:
        await manager.create_sandbox(SandboxType.DOCKER, {"image": image})
    says(caught, "image")


async def test_an_unknown_sandbox_is_named(manager: LocalSandboxManager):
    with pytest.raises(SandboxNotFound) as caught:
        await manager.execute_tool("no-such-sandbox", "python_executor", {"code": "1"})
    says(caught, "no-such-sandbox")
    assert await manager.get_sandbox_info("no-such-sandbox") is None
    assert await manager.delete_sandbox("no-such-sandbox") is False


@pytest.mark.parametrize("sandbox_id", ["../..", "a/b", "a\r\nb", "x\0", "A", "-a", "a" * 64, "a" * 100_000, HALF])
async def test_what_cannot_be_the_id_of_a_sandbox_is_refused(manager: LocalSandboxManager, sandbox_id: str):
    for call in with_id(manager):
        with pytest.raises(InvalidRequest) as caught:
            await call(sandbox_id)
        says(caught, "sandbox_id")


async def test_an_id_that_is_larger_than_a_whole_request_may_be_is_refused(manager: LocalSandboxManager):
    for call in with_id(manager):
        with pytest.raises(InvalidRequest) as caught:
            await call("a" * MIB)
        assert "sandbox_id" in str(caught.value) or str(caught.value).startswith("request: has 10")


def with_id(manager: LocalSandboxManager) -> tuple[Callable[[str], Awaitable[Any]], ...]:
    """Calls that take the id of a sandbox."""
    return (
        lambda sandbox_id: manager.execute_tool(sandbox_id, "python_executor", {"code": "1"}),
        lambda sandbox_id: manager.create_sandbox(SandboxType.DOCKER, sandbox_id=sandbox_id),
        manager.delete_sandbox,
    )


async def test_an_unknown_tool_is_refused_with_those_there_are(manager: LocalSandboxManager, sandbox: Sandbox):
    for call in (sandbox.execute_tool("nope"), manager.execute_tool(sandbox.id, "nope")):
        with pytest.raises(ToolNotFound) as caught:
            await call
        says(caught, "nope", "file_operation, python_executor, shell_executor")


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        (["nope"], ("spec.tools", "'nope'", "python_executor")),
        ({"python_executor": {"timeout": -1}}, ("spec.tools.python_executor.timeout",)),
        ({"python_executor": {"colour": "red"}}, ("spec.tools.python_executor.colour",)),
        ({"bash": {"timeout": 1}, "shell_executor": {"timeout": 2}}, ("spec.tools.shell_executor", "twice")),
    ],
)
async def test_tools_and_options_that_there_are_not_are_refused(
    manager: LocalSandboxManager, tools: Any, words: tuple[str, ...]
):
    with pytest.raises(EnclaveError) as caught:
        await manager.create_sandbox(SandboxType.DOCKER, {"tools_config": tools})
    assert isinstance(caught.value, ValueError)
    says(caught, *words)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memroy_limit", "1g"),
        *(("memory_limit", text) for text in ("0", "-1", "1e99", "NaN", "5 apples", "", "1t", " 1g", "٣g", 5, None)),
        *(("cpu_limit", number) for number in (0, -1, float("nan"), float("inf"), 1e99, "fast", None)),
        *(("timeout", number) for number in (-1, float("nan"), float("inf"), 1e99, "soon", None)),
        *(("resource_limits", {"ttl": number}) for number in (0, -1, float("nan"), "ever")),
        *(("resource_limits", {"pids_limit": number}) for number in (0, -1, 1e99, "many")),
        ("resource_limits", {"threads": 5}),
    ],
    ids=lambda value: ascii(value)[:30],
)
async def test_a_malformed_configuration_is_refused_before_anything_is_made(
    manager: LocalSandboxManager, field: str, value: Any
):
    with pytest.raises(ValueError, match=field):
        await manager.create_sandbox(SandboxType.DOCKER, {field: value})


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({"privileged": True}, "privileged"),
        ({"volumes": {"/": {"bind": "/host", "mode": "rw"}}}, "volumes"),
        ({"volumes": {"/var/run/docker.sock": {"bind": "/docker.sock"}}}, "volumes"),
        ({"volumes": {"/etc/ssl": {"bind": "/e", "mode": "ro"}}}, "volumes"),
        ({"network": "host"}, "network"),
        ({"network": "container:enclaved"}, "network"),
        ({"ports": {"80/tcp": ("0.0.0.0", 80)}}, "ports"),
        ({"extra_hosts": {"metadata": "169.254.169.254"}}, "extra_hosts"),
        ({"command": ["sleep", "1"]}, "command"),
        ({"platform": "linux/mips"}, "platform"),
        ({"memory_limit": "1000g"}, "resources"),
    ],
    ids=str,
)
async def test_what_the_policy_does_not_grant_is_refused_by_the_name_of_its_rule(
    manager: LocalSandboxManager, asked: dict[str, Any], rule: str
):
    with pytest.raises(PolicyDenied) as caught:
        await manager.create_sandbox(SandboxType.DOCKER, asked)
    says(caught, f"policy rule: {rule}", next(iter(asked)).removesuffix("s").partition("_")[0])
    assert caught.value.metadata["rule"] == rule


async def test_the_daemon_has_kept_nothing_of_all_that(manager: LocalSandboxManager, sandbox: Sandbox):
    assert [info.id for info in await manager.list_sandboxes()] == [sandbox.id]


# -- what to run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "parameters", "text"),
    [
        ("python_executor", {"code": ""}, "No code provided"),
        ("python_executor", {"code": " \n\t"}, "No code provided"),
        ("shell_executor", {"command": ""}, "No command provided"),
        ("bash", {"command": []}, "No command provided"),
        ("file_operation", {"operation": "nope", "file_path": "a"}, "Unknown operation: nope"),
        ("file_operation", {"operation": "write", "file_path": "a"}, "Content is required for write operation"),
    ],
)
async def test_nothing_to_do_is_a_failed_result(sandbox: Sandbox, tool: str, parameters: dict[str, Any], text: str):
    result = await sandbox.execute_tool(tool, parameters)
    assert (result.status, result.error, result.metadata["verdict"]) == (ExecutionStatus.ERROR, text, None)


@pytest.mark.parametrize(
    ("tool", "parameters", "field"),
    [
        ("python_executor", {"code": "1", "colour": "red"}, "parameters.colour"),
        ("python_executor", {}, "parameters.code"),
        ("python_executor", {"code": 5}, "parameters.code"),
        ("python_executor", {"code": None}, "parameters.code"),
        ("python_executor", {"code": "1", "isolated": "perhaps"}, "parameters.isolated"),
        ("shell_executor", {"command": {"a": "b"}}, "parameters.command"),
        ("shell_executor", {"command": ["echo", 5]}, "parameters.command"),
        ("shell_executor", {"command": "x" * 200_000}, "parameters.command"),
        ("file_operation", {"operation": "read"}, "parameters.file_path"),
        ("file_operation", {"operation": "write", "file_path": "a", "content": "b", "encoding": "klingon"}, "encoding"),
        *(("python_executor", {"code": "1", "timeout": bad}, "parameters.timeout") for bad in (-1, 1e99, "soon", True)),
    ],
    ids=lambda value: ascii(value)[:50],
)
async def test_a_wrong_parameter_is_a_value_error_that_names_it(
    sandbox: Sandbox, tool: str, parameters: dict[str, Any], field: str
):
    with pytest.raises(InvalidRequest) as caught:
        await sandbox.execute_tool(tool, parameters)
    says(caught, field)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), float("-inf"), 10**400, "soon"])
async def test_a_timeout_that_is_none_is_refused_by_name(sandbox: Sandbox, timeout: Any):
    for call in (
        sandbox.execute_tool("python_executor", {"code": "print(1)", "timeout": timeout}),
        sandbox.execute_command("echo 1", timeout=timeout),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await call
        says(caught, "parameters.timeout")


async def test_fifty_megabytes_of_code_are_refused_with_a_hint(sandbox: Sandbox):
    with pytest.raises(InvalidRequest) as caught:
        await sandbox.execute_tool("python_executor", {"code": "#" * 50_000_000})
    says(caught, "parameters", "1048576", "put_file")


async def test_the_limit_of_parameters_is_one_mebibyte_to_the_byte(sandbox: Sandbox):
    overhead = len('{"code":""}')
    result = await sandbox.execute_tool("python_executor", {"code": "#".ljust(MIB - overhead)})
    assert result.success, result.error
    with pytest.raises(InvalidRequest, match="put_file"):
        await sandbox.execute_tool("python_executor", {"code": "#".ljust(MIB - overhead + 1)})


async def test_more_code_than_that_runs_from_a_file(sandbox: Sandbox):
    await sandbox.put_file("large.py", "#" * (8 * MIB) + "\nprint('ran')")
    result = await sandbox.execute_tool("shell_executor", {"command": ["python3", "large.py"]})
    assert result.output == "ran\n"
    await sandbox.execute_command("rm large.py")


# -- text that is none -------------------------------------------------------------------------------------------


async def test_half_a_character_is_refused_wherever_it_stands(sandbox: Sandbox):
    calls = {
        "parameters.code": sandbox.execute_tool("python_executor", {"code": f"print('{HALF}')"}),
        "parameters.command": sandbox.execute_command(["echo", HALF]),
        "path": sandbox.read_file(HALF),
        "encoded": sandbox.put_file("a", HALF),
    }
    for field, call in calls.items():
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the texts follow
            await call
        assert field in str(caught.value) or "surrogate" in str(caught.value)
        assert isinstance(caught.value, EnclaveError)


async def test_a_nul_is_refused_where_programs_could_not_see_it(sandbox: Sandbox):
    for field, call in {
        "parameters.command": sandbox.execute_command("echo a\0b"),
        "parameters.command.1": sandbox.execute_command(["echo", "a\0b"]),
        "parameters.file_path": sandbox.execute_tool("file_operation", {"operation": "read", "file_path": "a\0b"}),
        "path": sandbox.read_file("a\0b"),
    }.items():
        with pytest.raises(InvalidRequest, match="NUL") as caught:
            await call
        says(caught, field)
    result = await sandbox.execute_tool("python_executor", {"code": "print(1)\0"})
    assert (result.status, result.metadata["verdict"]) == (ExecutionStatus.ERROR, "EXCEPTION")


async def test_output_that_is_no_text_is_shown_with_marks_and_exact_as_bytes(sandbox: Sandbox):
    code = r"import sys; sys.stdout.buffer.write(b'\xff\xfe \xc3( \x00 \xed\xa0\x80 end')"
    result = await sandbox.execute_tool("python_executor", {"code": code})
    assert (result.success, result.output) == (True, "\ufffd\ufffd \ufffd( \0 \ufffd\ufffd\ufffd end")
    pieces = [event.data async for event in sandbox.stream("python_executor", {"code": code}) if hasattr(event, "data")]
    assert b"".join(pieces) == b"\xff\xfe \xc3( \x00 \xed\xa0\x80 end"


# -- paths -------------------------------------------------------------------------------------------------------

OUTSIDE = (
    "/etc/passwd",
    "/etc/new",
    "../../etc/passwd",
    "/sandbox/../etc/shadow",
    "/tmp/../run/enclave/guest.py",
    "/proc/self/environ",
    "/dev/shm/file",
    "/run/enclave/socket/agent.sock",
    "out/passwd",
    "deep/out",
    "zero",
)


@pytest.fixture
async def traps(sandbox: Sandbox) -> Sandbox:
    """The sandbox with links that lead out."""
    made = await sandbox.execute_command(
        "mkdir -p deep; ln -sfn /etc out; ln -sfn ../out deep/out; ln -sfn /dev/zero zero"
    )
    assert made.exit_code == 0
    return sandbox


@pytest.mark.parametrize("path", OUTSIDE)
async def test_a_path_outside_the_sandbox_is_refused_however_it_is_written(traps: Sandbox, path: str):
    for call in (traps.read_file(path), traps.put_file(path, "x")):
        with pytest.raises(InvalidRequest, match="outside the sandbox's directories") as caught:
            await call
        says(caught, "path")
    for operation in ("read", "write", "list"):
        parameters = {"operation": operation, "file_path": path, "content": "x"}
        result = await traps.execute_tool("file_operation", parameters)
        assert (result.success, result.output) == (False, ""), operation
        assert "outside the sandbox's directories" in (result.error or "")
        assert "Traceback" not in (result.error or "")


async def test_the_guests_own_view_is_closed_to_paths_as_well(sandbox: Sandbox):
    with pytest.raises(PathUnusable, match="Permission denied"):
        await sandbox.read_file("/proc/1/root/etc/passwd")
