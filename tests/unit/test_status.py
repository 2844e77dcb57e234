"""Errors on the wire: each class has a row, and what it says helps the caller and nobody else."""

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from ms_enclave.v1 import error_reason_pb2

from enclaved import errors, status

EXAMPLES: list[errors.EnclaveError] = [
    errors.InvalidRequest.of("spec.timeout_s", "must be a number of seconds"),
    errors.PolicyDenied("resources", "spec.memory_limit_bytes", "too much memory", limit="4294967296"),
    errors.Unauthenticated("no token"),
    errors.SandboxNotFound("box"),
    errors.ExecutionNotFound("run"),
    errors.ToolNotFound("nope", ("python_executor",)),
    errors.ImageNotFound("nope:1", "no registry"),
    errors.PathNotFound("/sandbox/x"),
    errors.PoolNotFound("pool"),
    errors.ContextNotFound("analysis", "box"),
    errors.SandboxExists("box"),
    errors.RequestEnded("4711", "box"),
    errors.RevisionGone(5, 5000),
    errors.WrongState("box", "stopped", "running", "sandbox 'box' is stopped; start it first"),
    errors.ImageUnusable("busybox", "it has no python3"),
    errors.PathUnusable("/sandbox", "is a directory"),
    errors.PathExists("/sandbox/a"),
    errors.UploadGap("/sandbox/a", 17),
    errors.EngineRefused("create", "invalid reference"),
    errors.OffsetReleased("stdout", 5, 10),
    errors.LimitReached("box", "executions_per_sandbox_max", "100 executions run already", retry_after_s=1.5),
    errors.PoolBusy("pool", "no member was free within 5 s", retry_after_s=1.5),
    errors.NoSpace("/sandbox/big", "no space left in the sandbox"),
    errors.EngineUnavailable("unix:///var/run/docker.sock", "no such file"),
    errors.GuestUnavailable("the guest is not connected"),
    errors.TokensUnavailable(),
    errors.ShuttingDown(),
    errors.SandboxLost("box", "it was killed"),
    errors.NotServed("spec.terminal"),
]
GROUPS = {errors.EnclaveError, errors.NotFound, errors.Unavailable}
"""Classes that only group others and are never raised themselves."""


def every_class(base: type[errors.EnclaveError] = errors.EnclaveError) -> set[type[errors.EnclaveError]]:
    ours = {cls for cls in base.__subclasses__() if cls.__module__ == "enclaved.errors"}
    return ours.union(*(every_class(cls) for cls in ours)) if ours else ours


def details(found: status_pb2.Status) -> dict[str, Message]:
    unpacked: dict[str, Message] = {}
    for packed in found.details:
        name = packed.TypeName().rpartition(".")[2]
        detail = getattr(error_details_pb2, name)()
        assert packed.Unpack(detail)
        assert name not in unpacked
        unpacked[name] = detail
    return unpacked


def test_every_error_class_has_a_row_of_its_own():
    assert set(status.TABLE) == every_class() - GROUPS


def test_every_reason_is_used_by_exactly_one_row():
    used = [row.reason for row in (*status.TABLE.values(), status.INTERNAL)]
    assert sorted(used) == sorted(set(error_reason_pb2.ErrorReason.values()) - {0})


def test_the_examples_of_this_test_cover_every_class():
    assert {type(error) for error in EXAMPLES} == set(status.TABLE)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_a_status_has_code_text_reason_and_metadata(error):
    found = status.to_status(error)
    info = details(found)["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert found.code == status.TABLE[type(error)].code
    assert found.message == str(error)
    assert info.domain == "enclaved.ms-enclave"
    assert error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{info.reason}") == status.TABLE[type(error)].reason
    assert dict(info.metadata) == dict(error.metadata)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_the_metadata_keys_are_those_that_the_contract_names(error):
    reason = error_reason_pb2.ErrorReason.Name(status.TABLE[type(error)].reason)
    documented = {
        "ERROR_REASON_POLICY_DENIED": {"rule", "field", "limit"},
        "ERROR_REASON_TOOL_NOT_FOUND": {"tool", "available"},
        "ERROR_REASON_IMAGE_NOT_FOUND": {"image"},
        "ERROR_REASON_FILE_NOT_FOUND": {"path"},
        "ERROR_REASON_SANDBOX_EXISTS": {"sandbox_id"},
        "ERROR_REASON_REQUEST_ENDED": {"request_id", "sandbox_id"},
        "ERROR_REASON_REVISION_GONE": {"revision", "newest"},
        "ERROR_REASON_WRONG_STATE": {"state", "wanted"},
        "ERROR_REASON_IMAGE_UNUSABLE": {"image"},
        "ERROR_REASON_FILE_UNUSABLE": {"path"},
        "ERROR_REASON_FILE_EXISTS": {"path"},
        "ERROR_REASON_UPLOAD_GAP": {"path", "arrived_bytes"},
        "ERROR_REASON_OFFSET_RELEASED": {"channel", "first_offset"},
        "ERROR_REASON_LIMIT_REACHED": {"limit"},
        "ERROR_REASON_POOL_BUSY": {"pool_id"},
        "ERROR_REASON_NO_SPACE": {"path"},
        "ERROR_REASON_ENGINE_UNAVAILABLE": {"engine"},
        "ERROR_REASON_SANDBOX_LOST": {"sandbox_id"},
        "ERROR_REASON_NOT_IMPLEMENTED": {"feature"},
        "ERROR_REASON_ENGINE_REFUSED": {"engine_message"},
    }
    assert set(error.metadata) == documented.get(reason, set())


def test_a_malformed_field_is_named_with_its_reason():
    error = errors.InvalidRequest(
        errors.FieldViolation("spec.tool", "is missing"),
        errors.FieldViolation("parameters.code", "No code provided", reason="TOOL_REFUSED"),
    )
    bad = details(status.to_status(error))["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [(v.field, v.description, v.reason) for v in bad.field_violations] == [
        ("spec.tool", "is missing", "INVALID"),
        ("parameters.code", "No code provided", "TOOL_REFUSED"),
    ]


def test_a_missing_object_is_named():
    found = details(status.to_status(errors.ImageNotFound("nope:1", "no registry")))["ResourceInfo"]
    assert found == error_details_pb2.ResourceInfo(resource_type="image", resource_name="nope:1")


def test_a_wrong_state_says_what_it_is_and_what_it_should_be():
    found = details(status.to_status(errors.WrongState("box", "stopped", "running", "start it")))["PreconditionFailure"]
    assert isinstance(found, error_details_pb2.PreconditionFailure)
    assert [(v.type, v.subject, v.description) for v in found.violations] == [
        ("STATE", "box", "is stopped, wanted running")
    ]


def test_a_limit_says_which_and_when_to_try_again():
    found = details(status.to_status(errors.LimitReached("box", "sandboxes_max", "200 already", retry_after_s=1.5)))
    quota, retry = found["QuotaFailure"], found["RetryInfo"]
    assert isinstance(quota, error_details_pb2.QuotaFailure)
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert quota.violations[0].subject == "box"
    assert "sandboxes_max" in quota.violations[0].description
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_a_busy_pool_says_when_to_try_again():
    retry = details(status.to_status(errors.PoolBusy("pool", "all busy", retry_after_s=1.5)))["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_a_subclass_of_a_plug_in_uses_the_row_of_its_base():
    class Lost(errors.SandboxLost):
        pass

    assert status.to_status(Lost("box", "gone")).code == code_pb2.ABORTED


def test_an_error_that_nobody_entered_is_a_fault_of_ours():
    assert status.row_of(errors.EnclaveError("?")) is status.INTERNAL


def test_an_internal_error_tells_where_to_look_and_nothing_else():
    found = status.internal_status("3f2a")
    info = details(found)["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (found.code, info.reason, dict(info.metadata)) == (code_pb2.INTERNAL, "INTERNAL", {"log_id": "3f2a"})


@pytest.mark.parametrize("text", ["x" * 100_000, "中" * 100_000, "\ud800" * 1000, "\x00\n" * 50_000])
def test_a_status_stays_small_whatever_a_caller_sent(text):
    violations = (errors.FieldViolation(f"spec.{text}", text) for _ in range(500))
    for error in (
        errors.InvalidRequest(*violations),
        errors.SandboxNotFound(text),
        errors.WrongState(text, text, text, text),
        errors.LimitReached(text, text, text),
        errors.PolicyDenied(text, text, text, text),
    ):
        found = status.to_status(error)
        assert found.ByteSize() <= 3000
        assert len(found.message.encode()) <= 900
        assert set(details(found)) >= {"ErrorInfo"}
