"""The exit codes of ``ms-enclave``, and its one line for what went wrong."""

from __future__ import annotations

import pytest
from ms_enclave import errors
from ms_enclave._cli import exits
from ms_enclave._model import ExceptionInfo, Finished, Verdict


@pytest.mark.parametrize(
    ("finished", "exit_code"),
    [
        (Finished(Verdict.EXITED, exit_code=0), 0),
        (Finished(Verdict.EXITED, exit_code=124), 124),
        (Finished(Verdict.EXCEPTION, exit_code=1), 1),
        (Finished(Verdict.SIGNALED, signal=15), 143),
        (Finished(Verdict.TIMEOUT), 124),
        (Finished(Verdict.IDLE_TIMEOUT), 124),
        (Finished(Verdict.CANCELLED), 130),
        (Finished(Verdict.OUT_OF_MEMORY, signal=9), 137),
        (Finished(Verdict.OUTPUT_LIMIT), 137),
        (Finished(Verdict.DISK_LIMIT, signal=25), 137),
        (Finished(Verdict.PIDS_LIMIT), 137),
        (Finished(Verdict.SANDBOX_LOST), 125),
        (Finished(Verdict.INTERNAL_ERROR), 125),
    ],
    ids=lambda value: value.verdict.value if isinstance(value, Finished) else None,
)
def test_every_verdict_has_an_exit_code(finished: Finished, exit_code: int) -> None:
    assert exits.of_program(finished, interrupted=False) == exit_code


def test_no_verdict_is_forgotten() -> None:
    codes = {
        verdict: exits.of_program(Finished(verdict, exit_code=3, signal=1), interrupted=False) for verdict in Verdict
    }
    assert set(codes) == set(Verdict)
    assert {verdict for verdict, code in codes.items() if code == 125} == {Verdict.SANDBOX_LOST, Verdict.INTERNAL_ERROR}


def test_an_interrupted_program_has_130_unless_it_ended_by_itself() -> None:
    interrupted = Finished(Verdict.EXCEPTION, exit_code=1, exception=ExceptionInfo("KeyboardInterrupt", ""))
    assert exits.of_program(interrupted, interrupted=True) == 130
    assert exits.of_program(Finished(Verdict.SIGNALED, signal=2), interrupted=True) == 130
    assert exits.of_program(Finished(Verdict.EXITED, exit_code=5), interrupted=True) == 5


def test_what_goes_wrong_is_one_line_with_what_to_do() -> None:
    assert exits.one_line(errors.InvalidRequest("so and so")) == "so and so"
    found = exits.one_line(errors.SandboxNotFound("no sandbox x"))
    assert found == "no sandbox x ('ms-enclave ps' lists those there are)"
    long = errors.DaemonStartFailed("it ended with code 1:\nfirst\n\nlast\n")
    assert exits.one_line(long) == "it ended with code 1: last"
    assert exits.one_line(errors.EnclaveError("")) == "EnclaveError"
