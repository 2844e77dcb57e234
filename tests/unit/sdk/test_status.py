"""A status becomes the error that its reason names."""

from __future__ import annotations

import pickle

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2
from ms_enclave import _status as status
from ms_enclave import errors
from ms_enclave.errors import EnclaveError

REASONS = status.reason_names()


def details(reason: str, *, domain: str = status.DOMAIN, **metadata: str) -> status_pb2.Status:
    found = status_pb2.Status(code=code_pb2.UNKNOWN, message="text")
    found.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata))
    return found


def error_of(found: status_pb2.Status, code: int = code_pb2.UNKNOWN) -> EnclaveError:
    return status.error_of(code, "text", found.SerializeToString())


def test_every_reason_has_a_class_of_its_own() -> None:
    assert sorted(status.BY_REASON) == sorted(REASONS)
    assert len(set(status.BY_REASON.values())) == len(REASONS)


@pytest.mark.parametrize("reason", REASONS)
def test_a_reason_becomes_its_class_with_its_values(reason: str) -> None:
    error = error_of(details(reason, key="value"))
    assert type(error) is status.BY_REASON[reason]
    assert error.metadata == {"key": "value"}
    assert str(error) == "text"


@pytest.mark.parametrize("kind", sorted(set(status.BY_REASON.values()), key=lambda kind: kind.__name__))
def test_every_class_is_in_the_tree_that_the_module_draws(kind: type[EnclaveError]) -> None:
    assert f"── {kind.__name__}" in (errors.__doc__ or "")
    assert kind.__name__ in errors.__all__


@pytest.mark.parametrize(
    ("kind", "caught"),
    [
        (errors.InvalidRequest, ValueError),
        (errors.SandboxNotFound, ValueError),
        (errors.ToolNotFound, ValueError),
        (errors.WrongState, ValueError),
        (errors.SandboxExists, ValueError),
        (errors.PolicyDenied, PermissionError),
        (errors.Unauthenticated, PermissionError),
        (errors.PathNotFound, FileNotFoundError),
        (errors.NoSpace, OSError),
        (errors.DaemonUnavailable, ConnectionError),
        (errors.DeadlineExceeded, TimeoutError),
        (errors.NotServed, NotImplementedError),
    ],
)
def test_errors_are_what_users_catch_today(kind: type[EnclaveError], caught: type[Exception]) -> None:
    with pytest.raises(caught, match="text"):
        raise kind("text")
    assert issubclass(kind, RuntimeError)


def test_fields_and_waiting_times_are_read() -> None:
    found = details("INVALID_REQUEST")
    violation = error_details_pb2.BadRequest.FieldViolation(field="a.b", description="is wrong", reason="X")
    found.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(1500)
    found.details.add().Pack(info)
    error = error_of(found)
    assert error.violations == (errors.FieldViolation("a.b", "is wrong", "X"),)
    assert error.retry_after_s == 1.5


def test_details_that_nobody_knows_are_skipped() -> None:
    found = status_pb2.Status()
    found.details.add().Pack(Timestamp(seconds=1))
    found.details.add(type_url="type.googleapis.com/some.Newer", value=b"\xff")
    found.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    found.MergeFrom(details("WRONG_STATE"))
    assert isinstance(error_of(found), errors.WrongState)


def test_a_reason_of_somebody_else_says_nothing() -> None:
    assert type(error_of(details("WRONG_STATE", domain="googleapis.com"), code_pb2.NOT_FOUND)) is errors.NotFound


@pytest.mark.parametrize("data", [b"", b"\xff\xff", details("SOME_NEWER_REASON").SerializeToString()])
def test_without_a_known_reason_the_code_decides(data: bytes) -> None:
    assert type(status.error_of(code_pb2.PERMISSION_DENIED, "text", data)) is errors.PolicyDenied
    assert type(status.error_of(code_pb2.UNKNOWN, "text", data)) is EnclaveError


def test_an_empty_text_is_replaced_by_the_code() -> None:
    assert str(status.error_of(code_pb2.UNKNOWN, "")) == "UNKNOWN"
    assert str(status.error_of(99, "")) == "status 99"


def test_only_refusals_of_a_tool_are_refusals_of_a_tool() -> None:
    refused = errors.FieldViolation("parameters.code", "No code provided", "TOOL_REFUSED")
    other = errors.FieldViolation("parameters.x", "is unknown", "INVALID")

    def with_violations(*found: errors.FieldViolation) -> EnclaveError:
        return errors.InvalidRequest("text", errors.ErrorDetails(violations=found))

    assert status.is_tool_refusal(with_violations(refused))
    assert not status.is_tool_refusal(with_violations(refused, other))
    assert not status.is_tool_refusal(with_violations())


@pytest.mark.parametrize("kind", [errors.InvalidRequest, errors.PathNotFound, errors.DeadlineExceeded])
def test_errors_survive_the_way_between_processes(kind: type[EnclaveError]) -> None:
    error = kind("text", errors.ErrorDetails({"a": "b"}, retry_after_s=1.0))
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), found.metadata, found.retry_after_s) == (kind, "text", {"a": "b"}, 1.0)
