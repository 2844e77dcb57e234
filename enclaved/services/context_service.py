"""ContextService: opens, lists, closes and resets the persistent interpreters of a sandbox."""

from __future__ import annotations

from ms_enclave.v1.context_service_pb2 import (
    CloseContextRequest,
    CloseContextResponse,
    ListContextsRequest,
    ListContextsResponse,
    OpenContextRequest,
    OpenContextResponse,
    ResetContextRequest,
    ResetContextResponse,
)

from enclaved.core.contexts import Contexts
from enclaved.services import _convert as convert
from enclaved.services import _fields as fields
from enclaved.services._interceptors import Context


class ContextService:
    """Serves ``ms_enclave.v1.ContextService``."""

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts

    async def open_context(self, request: OpenContextRequest, context: Context) -> OpenContextResponse:
        """Opens a context; one that is open already is answered as it is."""
        opened = await self._contexts.open(fields.sandbox_id(request.sandbox_id), fields.context_name(request.name))
        return OpenContextResponse(context=convert.context(opened))

    async def list_contexts(self, request: ListContextsRequest, context: Context) -> ListContextsResponse:
        """Lists the contexts of a sandbox by name."""
        found = await self._contexts.list(fields.sandbox_id(request.sandbox_id))
        ordered = sorted(found, key=lambda each: each.name)
        return ListContextsResponse(contexts=[convert.context(each) for each in ordered])

    async def close_context(self, request: CloseContextRequest, context: Context) -> CloseContextResponse:
        """Ends a context at once."""
        await self._contexts.close(fields.sandbox_id(request.sandbox_id), fields.context_name(request.name))
        return CloseContextResponse()

    async def reset_context(self, request: ResetContextRequest, context: Context) -> ResetContextResponse:
        """Gives a context a new interpreter."""
        fresh = await self._contexts.reset(fields.sandbox_id(request.sandbox_id), fields.context_name(request.name))
        return ResetContextResponse(context=convert.context(fresh))
