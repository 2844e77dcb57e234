"""Members of pools are warmed before they are lent: contexts are opened, and modules imported in them."""

from __future__ import annotations

from typing import Final

from enclaved.agent.handle import RunOptions
from enclaved.core.executions import Executions
from enclaved.core.record import SandboxRecord
from enclaved.errors import EnclaveError, InvalidRequest
from enclaved.model import PoolPlan, PythonJob, Verdict

TOOL: Final = "preload"
OPEN_DEADLINE_S: Final = 20.0
PRELOAD_TIMEOUT_S: Final = 120.0
OUTPUT_LIMIT_BYTES: Final = 64 * 1024

_PROGRAM: Final = """
import importlib, sys
for name in names:
    try:
        importlib.import_module(name)
    except BaseException as error:
        print("%s: %s: %s" % (name, type(error).__name__, error), file=sys.stderr)
        raise
"""


class WarmingFailed(Exception):
    """A sandbox could not be made ready. The text says why; another one may fare better."""


async def warm(record: SandboxRecord, plan: PoolPlan, executions: Executions) -> int:
    """Opens the contexts of a plan in a sandbox that is as new, and imports its modules there, in so many executions.

    Raises `InvalidRequest` for a module that cannot be imported, which it names, and `WarmingFailed`.
    """
    for name in plan.warm_contexts:
        try:
            answer = await record.running_link().ask("open_context", OPEN_DEADLINE_S, name=name)
        except EnclaveError as error:
            raise WarmingFailed(str(error)) from error
        if answer.get("type") != "context" or answer.get("alive") is not True:
            raise WarmingFailed(f"its context {name!r} cannot be opened: {str(answer.get('message', ''))[:300]}")
        if plan.preload:
            await _preload(record, plan, name, executions)
    return len(plan.warm_contexts) if plan.preload else 0


async def _preload(record: SandboxRecord, plan: PoolPlan, context: str, executions: Executions) -> None:
    """Imports modules in a context, where the program that does it leaves no name."""
    code = f"exec({_PROGRAM!r}, {{'names': {list(plan.preload)!r}}})"
    options = RunOptions(PRELOAD_TIMEOUT_S, output_limit_bytes=OUTPUT_LIMIT_BYTES)
    try:
        run = executions.start(record, TOOL, PythonJob(code, context=context), options)
        result = await run.collect()
    except EnclaveError as error:
        raise WarmingFailed(str(error)) from error
    finished = result.finished
    if finished is not None and finished.verdict is Verdict.EXITED and finished.exit_code == 0:
        return
    said = result.stderr.decode("utf-8", "replace")
    failed = next((line for line in said.splitlines() if line.partition(":")[0] in plan.preload), "")
    if not failed:
        why = finished.message if finished is not None else "it did not end in time"
        raise WarmingFailed(f"its modules cannot be imported: {why or said[-300:]}")
    name, _, reason = failed.partition(": ")
    text = f"image {record.spec.image!r} cannot import {name!r} ({reason[:300]}); leave it out, or choose another image"
    raise InvalidRequest.of("preload", text)
