"""The life of sandboxes over gRPC, beyond being created, stopped and deleted."""

from __future__ import annotations

from ms_enclave import _convert as convert
from ms_enclave._model import SandboxInfo
from ms_enclave._transports.base import SandboxChange
from ms_enclave._transports.calls import REQUEST_S, Calls
from ms_enclave.errors import InvalidRequest
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb


class Lifecycle:
    """See `ms_enclave._transports.base.LifecycleCalls`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

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
            )
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"update: {error}") from None
        answer = await self._calls.unary(lambda stubs: stubs.sandboxes.UpdateSandbox, request, timeout_s=REQUEST_S)
        return convert.sandbox_info(answer.sandbox)
