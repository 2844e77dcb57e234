"""The life of sandboxes over gRPC, beyond being created, stopped and deleted."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from ms_enclave import _convert as convert
from ms_enclave._convert import life
from ms_enclave._model import SandboxInfo
from ms_enclave._model.life import SandboxEvent, SandboxFilter, SandboxListing, StateChange
from ms_enclave._transports.base import SandboxChange
from ms_enclave._transports.calls import REQUEST_S, Calls, checked
from ms_enclave._transports.paging import Pages
from ms_enclave.errors import DaemonUnavailable, DeadlineExceeded, InvalidRequest, Unavailable
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

PAGE_SIZE: Final = 1000
WATCH_S: Final = 24 * 3600.0
"""How long one call watches; then another goes on."""


class Lifecycle:
    """See `ms_enclave._transports.base.LifecycleCalls`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def find(self, wanted: SandboxFilter) -> SandboxListing:
        found: list[SandboxInfo] = []
        request = sandbox_pb.ListSandboxesRequest(page_size=PAGE_SIZE, **life.filter_fields(wanted))
        pages = Pages("sandboxes")
        while True:
            page = await self._calls.unary(lambda stubs: stubs.sandboxes.ListSandboxes, request, timeout_s=REQUEST_S)
            found.extend(convert.sandbox_info(sandbox) for sandbox in page.sandboxes)
            if not page.next_page_token:
                return SandboxListing(tuple(found), page.revision)
            request.page_token = pages.following(page.next_page_token)

    async def history(self, sandbox_id: str) -> list[StateChange]:
        request = sandbox_pb.GetSandboxRequest(sandbox_id=convert.text(sandbox_id, "sandbox_id"))
        answer = await self._calls.unary(lambda stubs: stubs.sandboxes.GetSandbox, request, timeout_s=REQUEST_S)
        return [life.state_change(change) for change in answer.history]

    async def watch(
        self, wanted: SandboxFilter, revision: int = 0, *, heartbeat_s: float = 0.0
    ) -> AsyncGenerator[SandboxEvent, None]:
        fields = life.filter_fields(wanted)
        retries = self._calls.retries()
        while True:
            try:
                request = sandbox_pb.WatchSandboxesRequest(revision=revision, heartbeat_s=heartbeat_s, **fields)
            except (TypeError, ValueError) as error:
                raise InvalidRequest(f"revision or heartbeat_s: {error}") from None
            try:
                with self._calls.call(WATCH_S) as stubs:
                    call = stubs.sandboxes.WatchSandboxes(request, timeout=WATCH_S)
                    try:
                        while isinstance(message := checked(await call.read()), sandbox_pb.WatchSandboxesResponse):
                            retries = self._calls.retries()
                            revision = message.revision
                            yield life.event(message)
                    finally:
                        call.cancel()
                # A watch has no end of its own.
                raise DaemonUnavailable(f"the daemon at {self._calls.address} ended the watch")
            except DeadlineExceeded:
                continue  # nobody watches in one call for so long
            except Unavailable as error:
                await self._calls.wait(retries, error)

    async def pause(self, sandbox_id: str) -> SandboxInfo:
        request = sandbox_pb.PauseSandboxRequest(sandbox_id=convert.text(sandbox_id, "sandbox_id"))
        answer = await self._calls.unary(lambda stubs: stubs.sandboxes.PauseSandbox, request, timeout_s=REQUEST_S)
        return convert.sandbox_info(answer.sandbox)

    async def resume(self, sandbox_id: str) -> SandboxInfo:
        request = sandbox_pb.ResumeSandboxRequest(sandbox_id=convert.text(sandbox_id, "sandbox_id"))
        answer = await self._calls.unary(lambda stubs: stubs.sandboxes.ResumeSandbox, request, timeout_s=REQUEST_S)
        return convert.sandbox_info(answer.sandbox)

    async def update(self, sandbox_id: str, change: SandboxChange) -> SandboxInfo:
        try:
            request = sandbox_pb.UpdateSandboxRequest(
                sandbox_id=convert.text(sandbox_id, "sandbox_id"),
                ttl_s=change.ttl_s,
                labels=None if change.labels is None else sandbox_pb.Labels(labels=change.labels),
                memory_limit_bytes=change.memory_limit_bytes,
                cpu_limit=change.cpu_limit,
                pids_limit=change.pids_limit,
                idle_timeout_s=change.idle_timeout_s,
            )
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"update: {error}") from None
        answer = await self._calls.unary(lambda stubs: stubs.sandboxes.UpdateSandbox, request, timeout_s=REQUEST_S)
        return convert.sandbox_info(answer.sandbox)
