"""The command of a sandbox: an execution that begins whenever the sandbox is started, and that nobody waits for.

It is user code like any other: it runs as the sandbox's user, its output can be read, its end ends nothing else. It
lasts at most as long as policy lets an execution last, and no longer than the sandbox.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from typing import Protocol

from enclaved.core.calls import Decided
from enclaved.core.record import SandboxRecord
from enclaved.errors import EnclaveError
from enclaved.model import ToolCall
from enclaved.tools.registry import COMMAND

log = logging.getLogger(__name__)


class Runner(Protocol):
    """Whoever runs executions; see `Executions`."""

    def admit(self, call: ToolCall, record: SandboxRecord) -> Decided:
        """Decides all of a call, and counts it."""
        ...

    async def run(self, call: ToolCall, admitted: Decided | None = None) -> object:
        """Runs a call that was admitted."""
        ...

    def knows(self, execution_id: str) -> bool:
        """Whether an execution runs, or ended and is remembered."""
        ...


@dataclass(frozen=True, slots=True)
class Command:
    """A command that may begin."""

    call: ToolCall
    decided: Decided


class StartupCommands:
    """Begins the commands of sandboxes. ``executions`` is set as soon as there are any."""

    def __init__(self) -> None:
        self.executions: Runner | None = None

    def admit(self, record: SandboxRecord) -> Command | None:
        """Looks whether the command of a sandbox may begin, and counts it, before anything is made for that.

        ``None``: it has none. Raises `InvalidRequest`, `PolicyDenied`, `LimitReached`.
        """
        return self._admit(record, secrets.token_hex(8)) if record.spec.command else None

    def _admit(self, record: SandboxRecord, execution_id: str) -> Command | None:
        if self.executions is None:
            return None
        call = ToolCall(
            sandbox_id=record.id,
            tool=COMMAND,
            parameters={"command": list(record.spec.command)},
            execution_id=execution_id,
            timeout_s=0.0,  # as long as policy lets it
            detach=True,
        )
        return Command(call, self.executions.admit(call, record))

    @staticmethod
    def expect(record: SandboxRecord, command: Command | None) -> None:
        """Names the execution that is about to begin, so that what is written down of the sandbox names it."""
        record.command_execution_id = command.call.execution_id if command is not None else ""
        record.command_due = command is not None

    async def begin(self, record: SandboxRecord, command: Command | None) -> None:
        """Begins the command of a sandbox that runs, if it has one. Raises as `Executions.run`."""
        if command is None or self.executions is None:
            return
        try:
            await self.executions.run(command.call, command.decided)
        finally:
            record.command_due = False
        names = {"sandbox_id": record.id, "execution_id": record.command_execution_id}
        log.info("command begun", extra=names)

    async def make_good(self, record: SandboxRecord) -> None:
        """Begins the command of a sandbox that runs, if a daemon was killed before it did that.

        What keeps it from beginning now is logged; then the sandbox names no execution.
        """
        if not record.command_due or self.executions is None:
            return
        if self.executions.knows(record.command_execution_id):
            record.command_due = False
            return
        try:
            await self.begin(record, self._admit(record, record.command_execution_id))
        except EnclaveError as error:
            self.expect(record, None)
            log.warning("command not begun", extra={"sandbox_id": record.id, "reason": str(error)})
