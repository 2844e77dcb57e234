"""The transport over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

import grpc.aio

from ms_enclave import _convert as convert
from ms_enclave import _results as results
from ms_enclave import _status as status
from ms_enclave._convert.pools import pool_options
from ms_enclave._model import Event, HealthCheckResult, SandboxInfo, ToolInfo, ToolResult
from ms_enclave._model.pools import PoolOptions
from ms_enclave._transports.base import PullProgress, SandboxPlan, ToolCall
from ms_enclave._transports.calls import REQUEST_S, Calls, DaemonStatus, checked
from ms_enclave._transports.contexts import Contexts
from ms_enclave._transports.credentials import Credentials
from ms_enclave._transports.executions import Executions
from ms_enclave._transports.files import Files
from ms_enclave._transports.lifecycle import Lifecycle
from ms_enclave._transports.paging import Pages
from ms_enclave._transports.pools import Pools
from ms_enclave.errors import EnclaveError, InvalidRequest, PoolNotFound, SandboxNotFound, Unavailable
from ms_enclave.v1 import file_service_pb2 as file_pb
from ms_enclave.v1 import image_service_pb2 as image_pb
from ms_enclave.v1 import pool_service_pb2 as pool_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import system_service_pb2 as system_pb
from ms_enclave.v1 import tool_service_pb2 as tool_pb

CREATE_S: Final = 900.0
"""How long the making of a sandbox may take, the pull of its image included."""
PULL_S: Final = 3600.0
"""How long the pull of an image may take."""
FILE_S: Final = 600.0
"""How long a file may take."""
DELETE_QUIETLY_S: Final = 5.0
"""How long a caller that was cancelled waits for the sandbox that it no longer wants to be deleted."""


class GrpcTransport:
    """A way to the daemon at one address. May be called from any event loop and thread."""

    def __init__(
        self,
        address: str,
        *,
        request_timeout_s: float = REQUEST_S,
        revive: Callable[[], Awaitable[None]] | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """Takes a gRPC target such as ``unix:/run/enclaved/enclaved.sock`` or ``host:port``, or ``https://host:port``.

        ``credentials``: what it shows of itself, and whom it trusts. Raises `InvalidRequest` if they would travel in
        the open.
        ``revive`` is awaited before another attempt at a daemon that does not answer; it may start one.
        """
        self._calls = Calls(address, revive, credentials)
        self.executions = Executions(self._calls)
        self.contexts = Contexts(self._calls)
        self.lifecycle = Lifecycle(self._calls)
        self.pools = Pools(self._calls)
        self.files = Files(self._calls)
        self._request_s = request_timeout_s

    @property
    def address(self) -> str:
        return self._calls.address

    # -- sandboxes -----------------------------------------------------------------------------------------------

    async def create_sandbox(self, plan: SandboxPlan, *, request_id: str = "") -> SandboxInfo:
        """Creates a sandbox. Whoever gives a ``request_id`` may ask again: the same id is the same sandbox."""
        spec = convert.spec(plan.config, plan.tools)
        # Every attempt is the same request, and so the same sandbox: whatever became of the ones before.
        request = sandbox_pb.CreateSandboxRequest(
            sandbox_id=_id(plan.sandbox_id),
            spec=spec,
            labels=plan.labels,
            request_id=convert.text(request_id, "request_id") or uuid.uuid4().hex,
        )
        try:
            answer = await self._calls.unary(lambda stubs: stubs.sandboxes.CreateSandbox, request, timeout_s=CREATE_S)
        except asyncio.CancelledError:
            if request_id:
                raise  # it may be the sandbox of an earlier call, and who asks again has it
            with contextlib.suppress(EnclaveError, TimeoutError):
                async with asyncio.timeout(DELETE_QUIETLY_S):
                    await self.delete_sandbox(plan.sandbox_id)
            raise
        return convert.sandbox_info(answer.sandbox)

    async def get_sandbox(self, sandbox_id: str) -> SandboxInfo:
        request = sandbox_pb.GetSandboxRequest(sandbox_id=_id(sandbox_id))
        answer = await self._calls.unary(lambda stubs: stubs.sandboxes.GetSandbox, request, timeout_s=self._request_s)
        return convert.sandbox_info(answer.sandbox)

    async def list_sandboxes(self, labels: Mapping[str, str]) -> list[SandboxInfo]:
        found: list[SandboxInfo] = []
        request = sandbox_pb.ListSandboxesRequest(labels=labels, page_size=1000)
        pages = Pages("sandboxes")
        while True:
            page = await self._calls.unary(
                lambda stubs: stubs.sandboxes.ListSandboxes, request, timeout_s=self._request_s
            )
            found.extend(convert.sandbox_info(sandbox) for sandbox in page.sandboxes)
            if not page.next_page_token:
                return found
            request.page_token = pages.following(page.next_page_token)

    async def start_sandbox(self, sandbox_id: str) -> SandboxInfo:
        request = sandbox_pb.StartSandboxRequest(sandbox_id=_id(sandbox_id))
        answer = await self._calls.unary(lambda stubs: stubs.sandboxes.StartSandbox, request, timeout_s=CREATE_S)
        return convert.sandbox_info(answer.sandbox)

    async def stop_sandbox(self, sandbox_id: str) -> SandboxInfo:
        request = sandbox_pb.StopSandboxRequest(sandbox_id=_id(sandbox_id))
        answer = await self._calls.unary(lambda stubs: stubs.sandboxes.StopSandbox, request, timeout_s=self._request_s)
        return convert.sandbox_info(answer.sandbox)

    async def delete_sandbox(self, sandbox_id: str, *, wait: bool = True) -> None:
        request = sandbox_pb.DeleteSandboxRequest(sandbox_id=_id(sandbox_id), wait=wait)
        retries = self._calls.retries()
        try:
            await self._calls.unary(
                lambda stubs: stubs.sandboxes.DeleteSandbox, request, timeout_s=self._request_s, retries=retries
            )
        except SandboxNotFound:
            if not retries.used:
                raise

    # -- tools ---------------------------------------------------------------------------------------------------

    async def list_tools(self, sandbox_id: str = "") -> list[ToolInfo]:
        request = tool_pb.ListToolsRequest(sandbox_id=_id(sandbox_id))
        answer = await self._calls.unary(lambda stubs: stubs.tools.ListTools, request, timeout_s=self._request_s)
        return [convert.tool_info(tool) for tool in answer.tools]

    async def run(self, call: ToolCall) -> ToolResult:
        return await _result(call.tool, self.executions.run(call))

    def stream(self, call: ToolCall) -> AsyncGenerator[Event, None]:
        return self.executions.stream(call)

    # -- pools ---------------------------------------------------------------------------------------------------

    async def initialize_pool(
        self, pool_id: str, size: int, plan: SandboxPlan, options: PoolOptions | None = None
    ) -> list[str]:
        if size not in range(2**31):
            raise InvalidRequest(f"pool_size: {size} is no number of sandboxes")
        request = pool_pb.InitializePoolRequest(
            pool_id=convert.text(pool_id, "pool_id"),
            size=size,
            spec=convert.spec(plan.config, plan.tools),
            labels=plan.labels,
            options=None if options is None else pool_options(options),
        )
        try:
            answer = await self._calls.unary(lambda stubs: stubs.pools.InitializePool, request, timeout_s=CREATE_S)
        except asyncio.CancelledError:
            with contextlib.suppress(EnclaveError, TimeoutError):
                async with asyncio.timeout(DELETE_QUIETLY_S):
                    await self.delete_pool(pool_id)
            raise
        return list(answer.sandbox_ids)

    async def run_in_pool(self, pool_id: str, call: ToolCall, *, wait_timeout_s: float | None = None) -> ToolResult:
        return await _result(call.tool, self.executions.run_in_pool(pool_id, call, wait_timeout_s))

    async def delete_pool(self, pool_id: str) -> None:
        request = pool_pb.DeletePoolRequest(pool_id=convert.text(pool_id, "pool_id"))
        retries = self._calls.retries()
        try:
            await self._calls.unary(
                lambda stubs: stubs.pools.DeletePool, request, timeout_s=self._request_s, retries=retries
            )
        except PoolNotFound:
            if not retries.used:
                raise

    # -- files ---------------------------------------------------------------------------------------------------

    async def read_file(self, sandbox_id: str, path: str) -> AsyncGenerator[bytes, None]:
        request = file_pb.ReadFileRequest(sandbox_id=_id(sandbox_id), path=_path(path))
        retries = self._calls.retries()
        begun = False
        while True:
            try:
                with self._calls.call(FILE_S) as stubs:
                    call = stubs.files.ReadFile(request, timeout=FILE_S)
                    try:
                        while isinstance(message := checked(await call.read()), file_pb.ReadFileResponse):
                            begun = True
                            yield message.data
                    finally:
                        call.cancel()
                    return
            except Unavailable as error:
                if begun:
                    raise  # the file may be another one by now
                await self._calls.wait(retries, error)

    async def write_file(
        self, sandbox_id: str, path: str, content: Callable[[], AsyncIterator[bytes]], *, mode: int = 0o644
    ) -> int:
        opening = file_pb.OpenFile(sandbox_id=_id(sandbox_id), path=_path(path), mode=mode, create_parents=True)
        retries = self._calls.retries()
        while True:
            try:
                with self._calls.call(FILE_S) as stubs:
                    call = stubs.files.WriteFile(timeout=FILE_S)
                    daemon_status = DaemonStatus(call)
                    try:
                        # A daemon that has seen enough ends the call; its status then says why.
                        with contextlib.suppress(asyncio.InvalidStateError):
                            await call.write(file_pb.WriteFileRequest(open=opening))
                            async for data in content():
                                await call.write(file_pb.WriteFileRequest(data=data))
                            await call.done_writing()
                        return checked(await call).size_bytes
                    except grpc.aio.AioRpcError as error:
                        raise await daemon_status.instead_of(error) from None
                    finally:
                        call.cancel()
            except Unavailable as error:
                await self._calls.wait(retries, error)

    # -- images --------------------------------------------------------------------------------------------------

    async def pull_image(self, image: str) -> AsyncGenerator[PullProgress, None]:
        """Makes sure that the daemon's engine has an image ("": the default one), and tells how far that is.

        Raises `InvalidRequest`, `PolicyDenied`, `ImageNotFound`, `EngineUnavailable`.
        """
        request = image_pb.PullImageRequest(image=convert.text(image, "image"))
        retries = self._calls.retries()
        begun = False
        while True:
            try:
                with self._calls.call(PULL_S) as stubs:
                    call = stubs.images.PullImage(request, timeout=PULL_S)
                    try:
                        while isinstance(seen := checked(await call.read()), image_pb.PullImageResponse):
                            begun = True
                            yield PullProgress(
                                seen.layer, seen.status, seen.current_bytes, seen.total_bytes, seen.image_id
                            )
                    finally:
                        call.cancel()
                    return
            except Unavailable as error:
                if begun:
                    raise
                await self._calls.wait(retries, error)

    # -- the daemon ----------------------------------------------------------------------------------------------

    async def health(self, *, timeout_s: float | None = None) -> HealthCheckResult:
        request = system_pb.GetInfoRequest()
        if timeout_s is None:
            answer = await self._calls.unary(lambda stubs: stubs.system.GetInfo, request, timeout_s=self._request_s)
        else:
            with self._calls.call(timeout_s) as stubs:
                answer = await stubs.system.GetInfo(request, timeout=timeout_s)
        return convert.health(answer)


async def _result(tool: str, running: Awaitable[results.Outcome]) -> ToolResult:
    try:
        return results.tool_result(tool, await running)
    except InvalidRequest as error:
        if not status.is_tool_refusal(error):
            raise
        return results.refused_result(tool, "; ".join(v.description for v in error.violations))


def _id(sandbox_id: str) -> str:
    return convert.text(sandbox_id, "sandbox_id")


def _path(path: str) -> str:
    return convert.text(path, "path")
