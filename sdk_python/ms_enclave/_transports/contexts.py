"""The persistent interpreters of sandboxes."""

from __future__ import annotations

from typing import Any

from ms_enclave import _convert as convert
from ms_enclave._model import ContextInfo
from ms_enclave._transports.calls import Calls
from ms_enclave.errors import NotFound
from ms_enclave.v1 import context_service_pb2 as pb


class Contexts:
    """Contexts at the daemon behind ``calls``."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def open(self, sandbox_id: str, name: str) -> ContextInfo:
        """Opens a context; leaves an open one alone."""
        request = pb.OpenContextRequest(**_named(sandbox_id, name))
        return convert.context_info((await self._calls.unary(lambda s: s.contexts.OpenContext, request)).context)

    async def list(self, sandbox_id: str) -> list[ContextInfo]:
        """Lists those that are open, by name."""
        request = pb.ListContextsRequest(sandbox_id=convert.text(sandbox_id, "sandbox_id"))
        answer = await self._calls.unary(lambda s: s.contexts.ListContexts, request)
        return [convert.context_info(context) for context in answer.contexts]

    async def close(self, sandbox_id: str, name: str) -> None:
        """Ends a context with what runs in it."""
        request = pb.CloseContextRequest(**_named(sandbox_id, name))
        retries = self._calls.retries()
        try:
            await self._calls.unary(lambda s: s.contexts.CloseContext, request, retries=retries)
        except NotFound:
            if not retries.used:  # otherwise an earlier attempt did it, and its answer was lost
                raise

    async def reset(self, sandbox_id: str, name: str) -> ContextInfo:
        """Gives a context a new interpreter."""
        request = pb.ResetContextRequest(**_named(sandbox_id, name))
        return convert.context_info((await self._calls.unary(lambda s: s.contexts.ResetContext, request)).context)


def _named(sandbox_id: str, name: str) -> dict[str, Any]:
    return {"sandbox_id": convert.text(sandbox_id, "sandbox_id"), "name": convert.text(name, "name")}
