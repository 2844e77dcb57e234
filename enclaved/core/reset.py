"""The verified reset of a sandbox between two calls that may know nothing of each other."""

from __future__ import annotations

import json
from dataclasses import dataclass

from enclaved.agent.handle import RunOptions
from enclaved.core.executions import Executions
from enclaved.core.record import SandboxRecord
from enclaved.errors import EnclaveError
from enclaved.model import FileJob, FileOperation, RunResult, Verdict

TOOL = "reset"
WIPE_TIMEOUT_S = 30.0


class ResetFailed(Exception):
    """A sandbox could not be shown to be as new; it must not be used again."""


@dataclass(frozen=True, slots=True)
class ResetProof:
    """What a reset found and removed. Nothing was left."""

    processes_killed: int
    files_removed: int


async def reset(record: SandboxRecord, executions: Executions) -> ResetProof:
    """Kills every process, removes every file and shared object of the user, and looks that nothing is left.

    The guest confirms that no process is left; the files are then removed and counted again by a process of ours with
    the user's rights. Raises `ResetFailed`.
    """
    try:
        killed = await record.running_link().park()
        before = record.executions_started
        job = FileJob(FileOperation.WIPE, ".")
        wipe = executions.start(record, TOOL, job, RunOptions(WIPE_TIMEOUT_S))
        result = await wipe.collect()
    except EnclaveError as error:
        raise ResetFailed(str(error)) from error
    removed, left = _report(result)
    if left:
        raise ResetFailed(f"{left} files or shared objects cannot be removed")
    if record.executions_started != before + 1:
        raise ResetFailed("something was run in it meanwhile")
    return ResetProof(killed, removed)


def _report(result: RunResult) -> tuple[int, int]:
    finished = result.finished
    if finished is None or finished.verdict is not Verdict.EXITED or finished.exit_code != 0:
        why = result.stderr[:500].decode("utf-8", "replace").strip()
        raise ResetFailed(f"its files cannot be removed: {why or (finished.message if finished else 'no answer')}")
    try:
        report = json.loads(result.stdout)
    except ValueError:
        report = None
    numbers = (report.get("removed"), report.get("left")) if isinstance(report, dict) else (None, None)
    removed, left = numbers
    if type(removed) is not int or type(left) is not int:
        raise ResetFailed("it does not say what is left in it")
    return removed, left
