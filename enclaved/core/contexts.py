"""The persistent interpreters of sandboxes: opened, listed, closed, and given a new beginning.

The guest alone knows which there are. What it says of them is hostile input, as everything from a sandbox is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from enclaved.agent.fields import boolean, integer, seconds, string
from enclaved.agent.guest.frames import FrameError
from enclaved.agent.handle import public_id
from enclaved.core.policy import check_context_name
from enclaved.core.record import SandboxRecord
from enclaved.core.sandboxes import Sandboxes
from enclaved.errors import ContextNotFound, EnclaveError, GuestUnavailable, LimitReached
from enclaved.model import ContextInfo

log = logging.getLogger(__name__)

ASK_DEADLINE_S: Final = 5.0
CHANGE_DEADLINE_S: Final = 20.0
"""Longer than a guest tries to end a context or to start a process."""

REOPEN_PAUSES_S: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""How long to wait each time before a context is opened again that was closed while it was opened."""


class Contexts:
    """Speaks to the guests of running sandboxes about their contexts.

    Every call raises `InvalidRequest` for what is no name, `SandboxNotFound`, `WrongState` if the sandbox does not run,
    and `GuestUnavailable`.
    """

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    async def open(self, sandbox_id: str, name: str) -> ContextInfo:
        """Opens a context and starts its interpreter; one that is open is answered as it is. Raises `LimitReached`."""
        for pause_s in REOPEN_PAUSES_S:
            try:
                record, answer = await self._ask("open_context", sandbox_id, name, CHANGE_DEADLINE_S)
            except ContextNotFound:  # somebody closed or reset it at the same moment
                await asyncio.sleep(pause_s)
            else:
                return _info(record, name, answer)
        raise GuestUnavailable(f"context {name!r} is being closed again and again; try again")

    async def list(self, sandbox_id: str) -> tuple[ContextInfo, ...]:
        """Lists the contexts that are open, by name."""
        record = await self._sandboxes.awake(sandbox_id)
        answer = await record.running_link().ask("list_contexts", ASK_DEADLINE_S)
        found = answer.get("contexts")
        if not isinstance(found, list) or not all(isinstance(context, dict) for context in found):
            raise _nonsense(record, "no list of contexts")
        contexts = sorted((_info(record, "", context) for context in found), key=lambda context: context.name)
        return tuple(contexts)

    async def close(self, sandbox_id: str, name: str) -> None:
        """Ends a context; what runs or waits in it is cancelled. Raises `ContextNotFound`."""
        await self._ask("close_context", sandbox_id, name, CHANGE_DEADLINE_S)
        log.info("context closed", extra={"sandbox_id": sandbox_id, "context": name})

    async def reset(self, sandbox_id: str, name: str) -> ContextInfo:
        """Gives a context a new interpreter; what runs or waits in it is cancelled.

        Raises `ContextNotFound`, `LimitReached`.
        """
        record, answer = await self._ask("reset_context", sandbox_id, name, CHANGE_DEADLINE_S)
        log.info("context reset", extra={"sandbox_id": sandbox_id, "context": name})
        return _info(record, name, answer)

    async def _ask(
        self, kind: str, sandbox_id: str, name: str, deadline_s: float
    ) -> tuple[SandboxRecord, Mapping[str, Any]]:
        check_context_name(name)
        record = await self._sandboxes.awake(sandbox_id)
        link = record.running_link()
        record.executions_started += 1  # a member of a pool is not as new any more
        answer = await link.ask(kind, deadline_s, name=name)
        if answer.get("type") == "context_refused":
            raise _refusal(record, name, answer)
        return record, answer


def _refusal(record: SandboxRecord, name: str, answer: Mapping[str, Any]) -> EnclaveError:
    message = answer.get("message")
    text = message[:500] if isinstance(message, str) and message else "no room for another context"
    match answer.get("code"):
        case "not_found":
            return ContextNotFound(name, record.id)
        case "full":
            return LimitReached(f"sandbox/{record.id}", "contexts", f"{text}; close one first (CloseContext)")
        case "no_process":
            return LimitReached(f"sandbox/{record.id}", "processes", text)
        case _:
            return _nonsense(record, "an unknown refusal")


def _info(record: SandboxRecord, name: str, found: Mapping[str, Any]) -> ContextInfo:
    """Reads what a guest says of a context. Raises `GuestUnavailable` for nonsense."""
    try:
        told = string(found, "name")
        check_context_name(told)
        if name and told != name:
            raise FrameError("another context")
        return ContextInfo(
            name=told,
            sandbox_id=record.id,
            created_at=datetime.now(UTC) - timedelta(seconds=seconds(found, "age_s")),
            calls=integer(found, "calls"),
            execution_id=public_id(string(found, "execution")),
            queued=min(integer(found, "queued"), 2**31 - 1),
            alive=boolean(found, "alive"),
        )
    except (FrameError, EnclaveError) as error:
        raise _nonsense(record, str(error)) from error


def _nonsense(record: SandboxRecord, what: str) -> GuestUnavailable:
    log.error("guest answered nonsense", extra={"sandbox_id": record.id, "reason": what[:500]})
    return GuestUnavailable(
        f"the guest of sandbox {record.id!r} answers nonsense about its contexts; reset the sandbox"
    )
