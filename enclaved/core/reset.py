"""The verified reset of a sandbox between two calls that may know nothing of each other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from enclaved.agent.fields import integer
from enclaved.agent.guest.frames import FrameError
from enclaved.agent.handle import RunOptions
from enclaved.agent.link import PARK_DEADLINE_S
from enclaved.core.executions import Executions
from enclaved.core.record import SandboxRecord
from enclaved.core.state import Baseline
from enclaved.errors import EnclaveError
from enclaved.model import FileJob, FileOperation, ResetProof, RunResult, Verdict

TOOL: Final = "reset"
WIPE_TIMEOUT_S: Final = 30.0
ASK_DEADLINE_S: Final = 5.0
MOUNTS_NAME_MOST: Final = 100
"""Longest digest of a table of mounts that is believed."""


class ResetFailed(Exception):
    """A sandbox could not be shown to be as new; it must not be used again. ``proof`` says what was left, if known."""

    def __init__(self, why: str, proof: ResetProof | None = None) -> None:
        super().__init__(why)
        self.proof = proof


@dataclass(frozen=True, slots=True)
class Shown:
    """What a reset has shown, and what the sandbox has now."""

    proof: ResetProof
    baseline: Baseline


async def reset(record: SandboxRecord, executions: Executions, baseline: Baseline | None) -> Shown:
    """Kills every process, removes every file and shared object of the user, and looks that nothing is left.

    The guest confirms that no process and no context is left. Where it can tell from the counts of file systems that
    nothing else is, that is all; otherwise files and shared objects are removed and counted again by a process of ours
    with the user's rights, which also looks at what else could be left. ``baseline`` is what the sandbox had when it
    was new; ``None``: it is. Raises `ResetFailed`.
    """
    before = record.executions_started
    try:
        link = record.running_link()
        parked = await link.ask("park", PARK_DEADLINE_S, look=True)
        killed, contexts = integer(parked, "killed"), parked.get("contexts")
        if "untouched" in parked:
            found, runs = _read(parked["untouched"]), 0
        else:
            wipe = executions.start(record, TOOL, FileJob(FileOperation.WIPE, "."), RunOptions(WIPE_TIMEOUT_S))
            found, runs = _report(await wipe.collect()), 1
            contexts = (await link.ask("list_contexts", ASK_DEADLINE_S)).get("contexts")
            contexts = len(contexts) if isinstance(contexts, list) else None
    except (EnclaveError, FrameError) as error:
        raise ResetFailed(str(error)) from error
    if type(contexts) is not int or contexts < 0:
        raise ResetFailed("it does not say which contexts are open in it")
    now = Baseline(found.mounts, found.keys)
    was = baseline or now
    proof = ResetProof(
        processes_killed=killed,
        files_removed=found.removed,
        objects_removed=found.objects_removed,
        processes_left=found.processes,
        contexts_left=contexts,
        files_left=found.left,
        objects_left=found.objects_left,
        keys_left=max(0, now.keys - was.keys),
        variables_left=found.variables,
        mounts_changed=now.mounts != was.mounts,
    )
    if proof.leftovers:
        raise ResetFailed(f"what is left and cannot be removed: {', '.join(proof.leftovers)}", proof)
    if record.executions_started != before + runs:
        raise ResetFailed("something was run in it meanwhile", proof)
    return Shown(proof, was)


@dataclass(frozen=True, slots=True)
class _Report:
    """What the process of ours in the sandbox tells, which is hostile input as everything from there."""

    removed: int
    left: int
    objects_removed: int
    objects_left: int
    processes: int
    keys: int
    variables: int
    mounts: str


_NUMBERS: Final = ("removed", "left", "objects_removed", "objects_left", "processes", "keys", "variables")


def _report(result: RunResult) -> _Report:
    finished = result.finished
    if finished is None or finished.verdict is not Verdict.EXITED or finished.exit_code != 0:
        why = result.stderr[:500].decode("utf-8", "replace").strip()
        raise ResetFailed(f"its files cannot be removed: {why or (finished.message if finished else 'no answer')}")
    try:
        told = json.loads(result.stdout)
    except (ValueError, RecursionError):
        told = None
    return _read(told)


def _read(told: object) -> _Report:
    report: dict[str, Any] = told if isinstance(told, dict) else {}
    numbers = {name: report.get(name) for name in _NUMBERS}
    mounts = report.get("mounts")
    if not isinstance(mounts, str) or not 0 < len(mounts) <= MOUNTS_NAME_MOST:
        raise ResetFailed("it does not say what is left in it")
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers.values()):
        raise ResetFailed("it does not say what is left in it")
    return _Report(mounts=mounts, **numbers)  # type: ignore[arg-type]  # all are whole numbers, as was just checked
