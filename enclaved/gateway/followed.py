"""An execution whose client waits for the whole result."""

from __future__ import annotations

from typing import Any, Final

from enclaved.core import answer_room
from enclaved.core.executions import Execution
from enclaved.gateway.results import tool_result
from enclaved.model import STDERR, STDOUT, Finished, Notice, Output, RunResult, Verdict

OUTPUT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Most output of a channel in one answer; what comes after it is dropped, and the answer says so."""


async def followed(execution: Execution, tool: str) -> dict[str, Any]:
    """Follows an execution to its end, however much it writes, and words its result."""
    outputs = {STDOUT: bytearray(), STDERR: bytearray()}
    notices: list[Notice] = []
    dropped = False
    finished = Finished(Verdict.INTERNAL_ERROR)
    async with execution.attach() as events:
        async for event in events:
            match event:
                case Output():
                    kept = outputs[event.channel]
                    room = OUTPUT_BYTES_MAX - len(kept) if answer_room.take(len(event.data)) else 0
                    kept += event.data[:room]
                    dropped = dropped or len(event.data) > room
                case Notice():
                    notices.append(event)
                case Finished():
                    finished = event
    result = RunResult(execution.id, bytes(outputs[STDOUT]), bytes(outputs[STDERR]), tuple(notices), finished)
    return tool_result(tool, result, finished, truncated=dropped)
