"""The texts and fields that users parse."""

from __future__ import annotations

from typing import Any

import pytest
from ms_enclave._results import Outcome, command_result, refused_result, tool_result
from ms_enclave.sandbox.model import (
    Channel,
    CommandResult,
    ExceptionInfo,
    ExecutionStatus,
    Finished,
    Notice,
    NoticeKind,
    Phases,
    ToolResult,
    Verdict,
)


def result(verdict: Verdict, stdout: bytes = b"", stderr: bytes = b"", **fields: Any) -> ToolResult:
    return tool_result("t", Outcome("id", stdout, stderr, (), Finished(verdict, **fields)))


def test_success_has_output_and_no_error() -> None:
    found = result(Verdict.EXITED, b"42\n", exit_code=0)
    assert (found.status, found.output, found.error, found.success) == (ExecutionStatus.SUCCESS, "42\n", None, True)


def test_standard_error_is_shown_on_success_as_well() -> None:
    found = result(Verdict.EXITED, b"hi\n", b"err\n", exit_code=0)
    assert (found.status, found.error) == (ExecutionStatus.SUCCESS, "err\n")


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        (b"", "Command failed with exit code 3"),
        (b"no\n", "no\nCommand failed with exit code 3"),
        (b"no", "no\nCommand failed with exit code 3"),
    ],
)
def test_a_failed_command_names_its_exit_code_after_what_it_said(stderr: bytes, expected: str) -> None:
    found = result(Verdict.EXITED, stderr=stderr, exit_code=3)
    assert (found.status, found.error) == (ExecutionStatus.ERROR, expected)


@pytest.mark.parametrize("code", [124, 137])
def test_exit_codes_of_timeouts_and_kills_are_no_timeouts(code: int) -> None:
    assert result(Verdict.EXITED, exit_code=code).status is ExecutionStatus.ERROR


def test_a_signal_is_an_exit_code_of_a_shell() -> None:
    found = result(Verdict.SIGNALED, signal=9)
    assert found.error == "Command failed with exit code 137 (killed by signal 9, SIGKILL)"
    assert result(Verdict.SIGNALED, signal=50).error == "Command failed with exit code 178 (killed by signal 50)"


@pytest.mark.parametrize(("timeout_s", "text"), [(1.0, "1"), (0.3, "0.3"), (3600.0, "3600")])
def test_a_timeout_has_exactly_its_text(timeout_s: float, text: str) -> None:
    found = result(Verdict.TIMEOUT, stderr=b"KeyboardInterrupt\n", timeout_s=timeout_s)
    assert (found.status, found.error) == (ExecutionStatus.TIMEOUT, f"Command timed out after {text} seconds")
    assert found.metadata["stderr"] == "KeyboardInterrupt\n"


def test_a_traceback_is_all_there_is_to_say() -> None:
    found = result(Verdict.EXCEPTION, stderr=b"Traceback\nValueError: x\n", exit_code=1)
    assert (found.status, found.error) == (ExecutionStatus.ERROR, "Traceback\nValueError: x\n")


def test_an_exception_without_a_traceback_is_named() -> None:
    found = result(Verdict.EXCEPTION, exception=ExceptionInfo("ValueError", "x"))
    assert found.error == "ValueError: x"


def test_a_kill_at_the_memory_limit_says_so() -> None:
    found = result(Verdict.OUT_OF_MEMORY, signal=9)
    assert found.status is ExecutionStatus.ERROR
    assert "memory limit" in (found.error or "")
    assert "exit code 137" in (found.error or "")


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.EXITED])
def test_every_verdict_but_an_exit_has_a_reason_of_its_own(verdict: Verdict) -> None:
    found = result(verdict)
    assert found.error
    assert found.metadata["verdict"] == verdict.value
    assert not found.success


def test_the_daemon_knows_better_why_it_killed() -> None:
    assert result(Verdict.PIDS_LIMIT, message="more than 256 processes").error == "more than 256 processes"


def test_cancelled_is_cancelled_and_idle_is_a_timeout() -> None:
    assert result(Verdict.CANCELLED).status is ExecutionStatus.CANCELLED
    assert result(Verdict.IDLE_TIMEOUT).status is ExecutionStatus.TIMEOUT


def test_the_documented_metadata_is_always_there() -> None:
    documented = {"verdict", "exit_code", "signal", "stderr", "truncated", "execution_id", "phases"}
    assert documented <= result(Verdict.EXITED, exit_code=0).metadata.keys()
    assert documented <= refused_result("t", "No code provided").metadata.keys()


def test_what_else_is_known_is_in_the_metadata() -> None:
    gap = Notice(NoticeKind.GAP, "5 bytes are missing", Channel.STDOUT, 0, 5)
    finished = Finished(
        Verdict.EXITED, 0, limits_hit={"memory": 2}, state_preserved=True, phases=Phases(1.0, 0.5, 2.0, 0.25)
    )
    found = tool_result("t", Outcome("id", b"", b"", (gap,), finished))
    assert found.execution_time == 2.75
    assert found.metadata["truncated"] is True
    assert found.metadata["notices"] == ["5 bytes are missing"]
    assert found.metadata["limits_hit"] == {"memory": 2}
    assert found.metadata["state_preserved"] is True


def test_bytes_that_are_no_text_do_not_lose_the_rest() -> None:
    assert result(Verdict.EXITED, b"a\xffb", exit_code=0).output == "a�b"


def test_a_refusal_is_a_failed_result() -> None:
    found = refused_result("t", "No code provided")
    assert (found.status, found.output, found.error) == (ExecutionStatus.ERROR, "", "No code provided")


def command(verdict: Verdict, stdout: bytes = b"", stderr: bytes = b"", **fields: Any) -> CommandResult:
    return command_result(["a", "b"], result(verdict, stdout, stderr, **fields))


def test_a_command_keeps_its_streams_apart() -> None:
    found = command(Verdict.EXITED, b"out", b"err", exit_code=3)
    assert found.command == ["a", "b"]
    assert (found.status, found.exit_code, found.stdout, found.stderr) == (ExecutionStatus.ERROR, 3, "out", "err")


def test_a_command_that_was_killed_has_the_exit_code_of_a_shell() -> None:
    assert command(Verdict.SIGNALED, signal=9).exit_code == 137


def test_a_command_that_timed_out_has_no_exit_code_of_its_own() -> None:
    found = command(Verdict.TIMEOUT, timeout_s=5.0, signal=9)
    assert (found.status, found.exit_code) == (ExecutionStatus.TIMEOUT, -1)
    assert found.stderr == "Command timed out after 5 seconds"


def test_a_command_that_was_refused_says_why() -> None:
    found = command_result("", refused_result("command", "No command provided"))
    assert (found.status, found.exit_code, found.stderr) == (ExecutionStatus.ERROR, -1, "No command provided")
