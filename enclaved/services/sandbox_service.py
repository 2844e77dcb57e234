"""SandboxService: makes, shows and removes sandboxes."""

from __future__ import annotations

from contextlib import aclosing

from ms_enclave.v1.sandbox_service_pb2 import (
    CreateSandboxRequest,
    CreateSandboxResponse,
    DeleteSandboxRequest,
    DeleteSandboxResponse,
    GetSandboxRequest,
    GetSandboxResponse,
    ListSandboxesRequest,
    ListSandboxesResponse,
    PauseSandboxRequest,
    PauseSandboxResponse,
    ResumeSandboxRequest,
    ResumeSandboxResponse,
    StartSandboxRequest,
    StartSandboxResponse,
    StopSandboxRequest,
    StopSandboxResponse,
    UpdateSandboxRequest,
    UpdateSandboxResponse,
    WatchSandboxesRequest,
)

from enclaved.core.sandboxes import Sandboxes
from enclaved.services import _convert as convert
from enclaved.services import _fields as fields
from enclaved.services._interceptors import Context
from enclaved.services._pages import fitting


class SandboxService:
    """Serves ``ms_enclave.v1.SandboxService``."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    async def create_sandbox(self, request: CreateSandboxRequest, context: Context) -> CreateSandboxResponse:
        """Creates a sandbox and starts it."""
        sandbox = await self._sandboxes.create(
            convert.sandbox_request(request.spec),
            sandbox_id=fields.sandbox_id(request.sandbox_id, required=False),
            labels=dict(request.labels),
            request_id=request.request_id,
        )
        return CreateSandboxResponse(sandbox=convert.sandbox(sandbox))

    async def get_sandbox(self, request: GetSandboxRequest, context: Context) -> GetSandboxResponse:
        """Gets one sandbox."""
        sandbox_id = fields.sandbox_id(request.sandbox_id)
        return GetSandboxResponse(
            sandbox=convert.sandbox(self._sandboxes.get(sandbox_id)),
            history=[convert.state_change(change) for change in self._sandboxes.history(sandbox_id)],
        )

    async def list_sandboxes(self, request: ListSandboxesRequest, context: Context) -> ListSandboxesResponse:
        """Lists a page of sandboxes."""
        wanted, token = convert.sandbox_filter(request), request.page_token
        page, shown = fitting(
            request.page_size,
            lambda size: self._sandboxes.list(wanted=wanted, page_size=size, page_token=token),
            lambda page: (convert.sandbox(sandbox) for sandbox in page.sandboxes),
        )
        return ListSandboxesResponse(sandboxes=shown, next_page_token=page.next_page_token, revision=page.revision)

    async def watch_sandboxes(self, request: WatchSandboxesRequest, context: Context) -> None:
        """Tells of every change."""
        wanted = convert.sandbox_filter(request)
        async with aclosing(self._sandboxes.watch(request.revision, wanted, request.heartbeat_s)) as news:
            async for event in news:
                await context.write(convert.sandbox_event(event, wanted))

    async def delete_sandbox(self, request: DeleteSandboxRequest, context: Context) -> DeleteSandboxResponse:
        """Deletes a sandbox with everything in it."""
        await self._sandboxes.delete(fields.sandbox_id(request.sandbox_id), wait=request.wait)
        return DeleteSandboxResponse()

    async def start_sandbox(self, request: StartSandboxRequest, context: Context) -> StartSandboxResponse:
        """Starts a stopped sandbox again."""
        sandbox = await self._sandboxes.start(fields.sandbox_id(request.sandbox_id))
        return StartSandboxResponse(sandbox=convert.sandbox(sandbox))

    async def stop_sandbox(self, request: StopSandboxRequest, context: Context) -> StopSandboxResponse:
        """Stops a sandbox."""
        sandbox = await self._sandboxes.stop(fields.sandbox_id(request.sandbox_id))
        return StopSandboxResponse(sandbox=convert.sandbox(sandbox))

    async def pause_sandbox(self, request: PauseSandboxRequest, context: Context) -> PauseSandboxResponse:
        """Freezes a sandbox."""
        sandbox = await self._sandboxes.pause(fields.sandbox_id(request.sandbox_id))
        return PauseSandboxResponse(sandbox=convert.sandbox(sandbox))

    async def resume_sandbox(self, request: ResumeSandboxRequest, context: Context) -> ResumeSandboxResponse:
        """Lets a frozen sandbox go on."""
        sandbox = await self._sandboxes.resume(fields.sandbox_id(request.sandbox_id))
        return ResumeSandboxResponse(sandbox=convert.sandbox(sandbox))

    async def update_sandbox(self, request: UpdateSandboxRequest, context: Context) -> UpdateSandboxResponse:
        """Changes a sandbox."""
        sandbox_id = fields.sandbox_id(request.sandbox_id)
        sandbox = await self._sandboxes.update(sandbox_id, convert.sandbox_update(request))
        return UpdateSandboxResponse(sandbox=convert.sandbox(sandbox))
