"""The command of a sandbox: an execution that begins whenever the sandbox is started, and that nobody waits for.

It is user code like any other: it runs as the sandbox's user, its output can be read, its end ends nothing else. It
lasts at most as long as policy lets an execution last, and no longer than the sandbox.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable

from enclaved.core.record import SandboxRecord
from enclaved.model import ToolCall
from enclaved.tools.registry import COMMAND

log = logging.getLogger(__name__)


class StartupCommands:
    """Begins the commands of sandboxes. ``run`` is `Executions.run`, once there is one."""

    def __init__(self) -> None:
        self.run: Callable[[ToolCall], Awaitable[object]] | None = None

    @staticmethod
    def choose_id(record: SandboxRecord) -> None:
        """Names the execution that is about to begin, so that what is written down of the sandbox names it."""
        record.command_execution_id = secrets.token_hex(8) if record.spec.command else ""

    async def begin(self, record: SandboxRecord) -> None:
        """Begins the command of a sandbox that runs, if it has one. Raises as `Executions.run`."""
        if not record.command_execution_id or self.run is None:
            return
        call = ToolCall(
            sandbox_id=record.id,
            tool=COMMAND,
            parameters={"command": list(record.spec.command)},
            execution_id=record.command_execution_id,
            timeout_s=0.0,  # as long as policy lets it
            detach=True,
        )
        await self.run(call)
        names = {"sandbox_id": record.id, "execution_id": record.command_execution_id}
        log.info("command begun", extra=names)
