"""How the command ends: its exit codes, and what goes wrong in one line."""

from __future__ import annotations

import enum
import signal as signals
from typing import Final

from ms_enclave import errors
from ms_enclave._model import Finished, Verdict
from ms_enclave.errors import EnclaveError


class ExitCode(enum.IntEnum):
    """Exit codes that are not the program's own. docs/cli.md lists them for users."""

    OK = 0
    FAILED = 1
    USAGE = 2
    TIMEOUT = 124
    NOT_RUN = 125
    """Of ``run``: we failed, not the program, and its end says nothing about it."""
    INTERRUPTED = 130
    LIMIT = 137
    """A limit killed the program: memory, output, files or processes."""
    NOBODY_READS = 141


_VERDICTS: Final = {
    Verdict.EXCEPTION: ExitCode.FAILED,
    Verdict.TIMEOUT: ExitCode.TIMEOUT,
    Verdict.IDLE_TIMEOUT: ExitCode.TIMEOUT,
    Verdict.CANCELLED: ExitCode.INTERRUPTED,
    Verdict.OUT_OF_MEMORY: ExitCode.LIMIT,
    Verdict.OUTPUT_LIMIT: ExitCode.LIMIT,
    Verdict.DISK_LIMIT: ExitCode.LIMIT,
    Verdict.PIDS_LIMIT: ExitCode.LIMIT,
    Verdict.SANDBOX_LOST: ExitCode.NOT_RUN,
    Verdict.INTERNAL_ERROR: ExitCode.NOT_RUN,
}
_HINTS: Final = {
    errors.SandboxNotFound: "'ms-enclave ps' lists those there are",
    errors.EngineUnavailable: "is Docker running? 'systemctl start docker'",
    errors.NotServed: "is the daemon older than this command? 'ms-enclave version' tells",
}


def of_program(finished: Finished, *, interrupted: bool) -> int:
    """Returns the exit code for the end of a program.

    ``interrupted``: by Ctrl-C. A program that handled that and ended by itself keeps its own exit code.
    """
    if finished.verdict is Verdict.EXITED:
        return finished.exit_code or 0
    if interrupted and finished.verdict is Verdict.EXCEPTION:
        return ExitCode.INTERRUPTED
    if finished.verdict is Verdict.SIGNALED:
        return 128 + (finished.signal or 0)
    return _VERDICTS.get(finished.verdict, ExitCode.NOT_RUN)


def one_line(error: EnclaveError) -> str:
    """Says in one line what went wrong and what to do about it. Of what a daemon wrote, only the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
    hint = next((words for kind, words in _HINTS.items() if type(error) is kind and words not in text), "")
    return f"{text} ({hint})" if hint else text


def signal_code(number: signals.Signals) -> int:
    """Returns the exit code of a command that a signal ended."""
    return 128 + number
