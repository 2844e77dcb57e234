"""The documented routes: each reads its request, calls one thing in ``core`` and shows the answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from enclaved.core.answer_room import AnswerRoom
from enclaved.core.executions import Executions
from enclaved.core.files import Files
from enclaved.core.pages import PAGE_SIZE_MAX
from enclaved.core.pool import SIZE_MAX, WAIT_DEFAULT_S, Pools
from enclaved.core.sandboxes import Sandboxes
from enclaved.core.system import System
from enclaved.errors import (
    EnclaveError,
    InvalidRequest,
    PoolNotFound,
    SandboxNotFound,
    WrongState,
)
from enclaved.gateway import described, views
from enclaved.gateway.bodies import (
    DockerSandboxConfig,
    SandboxStatus,
    SandboxType,
    ToolExecutionRequest,
    sandbox_request,
)
from enclaved.gateway.followed import followed
from enclaved.gateway.intake import body_chunks, json_object, while_connected
from enclaved.gateway.refusals import Refused, cut, headers_of, refusal_of
from enclaved.gateway.results import refused_result, tool_result
from enclaved.model import (
    Finished,
    PoolPlan,
    Sandbox,
    SandboxRequest,
    ToolCall,
    Verdict,
)

POOL_ID: Final = "http"
"""The documented routes know one pool."""


_ModelT = TypeVar("_ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Core:
    """What the routes call."""

    sandboxes: Sandboxes
    executions: Executions
    files: Files
    system: System
    pools: Pools


class Routes:
    """Answers requests."""

    def __init__(self, core: Core, archive_bytes_max: int) -> None:
        self._core = core
        self._archive_bytes_max = archive_bytes_max
        self._started = time.monotonic()
        self._making_pool = asyncio.Lock()
        self._answers = AnswerRoom()

    def add_to(self, app: FastAPI) -> None:
        """Adds every route."""

        def add(method: str, path: str, answer: Any, summary: str, responses: described.Responses, **more: Any) -> None:
            app.add_api_route(path, answer, methods=[method], summary=summary, responses=responses, **more)

        add("GET", "/health", self.health, "Tells how the daemon is", described.HEALTH)
        add("GET", "/stats", self.stats, "Counts sandboxes", described.STATS)
        add(
            "POST",
            "/sandbox/create",
            self.create,
            "Creates a sandbox and starts it",
            described.CREATE,
            openapi_extra=described.CONFIG_BODY,
        )
        add("GET", "/sandboxes", self.sandboxes, "Lists sandboxes", described.LIST)
        add(
            "POST",
            "/sandbox/tool/execute",
            self.execute,
            "Runs a tool in a sandbox",
            described.EXECUTE,
            openapi_extra=described.EXECUTE_BODY,
        )
        add("GET", "/sandbox/{sandbox_id}", self.info, "Shows a sandbox", described.INFO)
        add("POST", "/sandbox/{sandbox_id}/stop", self.stop, "Stops a sandbox", described.STOP)
        add("DELETE", "/sandbox/{sandbox_id}", self.delete, "Deletes a sandbox", described.DELETE)
        add("GET", "/sandbox/{sandbox_id}/tools", self.tools, "Lists the tools of a sandbox", described.TOOLS)
        add(
            "POST",
            "/sandbox/{sandbox_id}/archive",
            self.archive,
            "Unpacks an archive in a sandbox",
            described.ARCHIVE,
            openapi_extra=described.ARCHIVE_BODY,
        )
        add(
            "POST",
            "/pool/initialize",
            self.pool_initialize,
            "Makes a pool of sandboxes",
            described.POOL_INITIALIZE,
            openapi_extra=described.CONFIG_BODY,
        )
        add(
            "POST",
            "/pool/execute",
            self.pool_execute,
            "Runs a tool in the next free sandbox of the pool",
            described.POOL_EXECUTE,
            openapi_extra=described.PARAMETERS_BODY,
        )

    # -- the daemon

    async def health(self) -> JSONResponse:
        """Healthy means that the container engine answers, so that sandboxes can be made."""
        info = await self._core.system.info()
        return JSONResponse(
            {
                "healthy": info.engine.available,
                "version": info.version,
                "uptime": time.monotonic() - self._started,
                "active_sandboxes": info.active_sandboxes,
                "system_info": self._stats(),
            }
        )

    async def stats(self) -> JSONResponse:
        """Sandboxes by status, and the size of the pool."""
        return JSONResponse(self._stats())

    def _stats(self) -> dict[str, Any]:
        statuses = [self._status(sandbox) for sandbox in self._all()]
        return views.stats(statuses, self._core.pools.stats().get(POOL_ID, 0))

    # -- sandboxes

    async def create(
        self,
        request: Request,
        sandbox_type: SandboxType = SandboxType.DOCKER,
        sandbox_id: Annotated[str, Query(description="Id of the sandbox; empty: the daemon chooses")] = "",
    ) -> JSONResponse:
        """Fields at their documented default are left to the policy; what the sandbox got shows in its config."""
        wanted = await _config(request, sandbox_type, "Failed to create sandbox")
        try:
            sandbox = await while_connected(request, self._core.sandboxes.create(wanted, sandbox_id=sandbox_id))
        except EnclaveError as error:
            raise _prefixed(error, "Failed to create sandbox") from error
        return JSONResponse({"sandbox_id": sandbox.id})

    async def sandboxes(self, status: Annotated[SandboxStatus | None, Query()] = None) -> JSONResponse:
        """Oldest first; ``status`` narrows the list."""
        found = [(sandbox, self._status(sandbox)) for sandbox in self._all()]
        return JSONResponse([self._info(sandbox) for sandbox, is_in in found if status in (None, is_in)])

    async def info(self, sandbox_id: str) -> JSONResponse:
        """Its status, what it really has, and its tools."""
        return JSONResponse(self._info(self._known(sandbox_id)))

    async def stop(self, sandbox_id: str) -> JSONResponse:
        """Kills everything in it at once. With remove_on_exit its files go, too."""
        self._known(sandbox_id)
        await self._core.sandboxes.stop(sandbox_id)
        return JSONResponse({"message": "Sandbox stopped successfully"})

    async def delete(self, sandbox_id: str) -> JSONResponse:
        """Kills everything in it and forgets it."""
        self._known(sandbox_id)
        await self._core.sandboxes.delete(sandbox_id)
        return JSONResponse({"message": "Sandbox deleted successfully"})

    async def tools(self, sandbox_id: str) -> JSONResponse:
        """Name to schema, in the form of OpenAI's function calling."""
        return JSONResponse(views.tool_schemas(self._core.sandboxes.tools(sandbox_id)))

    # -- running

    async def execute(self, request: Request) -> JSONResponse:
        """A program that fails is a result, not an error. Answers when it has ended."""
        self._answers.share()
        wanted = _validated(ToolExecutionRequest, await json_object(request) or {})
        call = ToolCall(wanted.sandbox_id, wanted.tool_name, wanted.parameters)
        return JSONResponse(await while_connected(request, self._run(call)))

    async def _run(self, call: ToolCall) -> dict[str, Any]:
        self._running(call.sandbox_id)
        try:
            execution = await self._core.executions.open(call)
        except InvalidRequest as error:
            return _refused_by_tool(error, call.tool)
        try:
            return await followed(execution, call.tool)
        finally:
            execution.cancel("its client, who left")  # nobody could come back for it; one that has ended stays so

    # -- files

    async def archive(self, request: Request, sandbox_id: str, target_dir: str = "") -> JSONResponse:
        """Into the working directory unless said. Written while it arrives: what came before a refusal stays."""
        self._running(sandbox_id)
        chunks = body_chunks(request, self._archive_bytes_max)
        first = await anext(chunks, None)
        if first is None:
            raise Refused(400, "Archive body must not be empty")
        await self._core.files.write_archive(sandbox_id, target_dir or ".", _with_first(first, chunks))
        return JSONResponse({"ok": True})

    # -- the pool

    async def pool_initialize(
        self,
        request: Request,
        pool_size: Annotated[int, Query(ge=1, le=SIZE_MAX)],
        sandbox_type: SandboxType = SandboxType.DOCKER,
    ) -> JSONResponse:
        """A pool that is asked for once more is the same one; one of another size or kind replaces it."""
        wanted = await _config(request, sandbox_type, "Failed to initialize pool")
        try:
            ids = await while_connected(request, self._initialize(pool_size, wanted))
        except EnclaveError as error:
            raise _prefixed(error, "Failed to initialize pool") from error
        answer = {"message": "Pool initialized successfully", "pool_size": len(ids), "sandbox_ids": ids}
        return JSONResponse(answer)

    async def _initialize(self, size: int, wanted: SandboxRequest) -> list[str]:
        pools = self._core.pools
        async with self._making_pool:
            plan = PoolPlan(size, wanted)
            with contextlib.suppress(PoolNotFound):
                if pools.get(POOL_ID).plan != plan:
                    await pools.delete(POOL_ID)
            pool = await pools.initialize(plan, pool_id=POOL_ID)
        return [*pool.sandbox_ids]

    async def pool_execute(
        self,
        request: Request,
        tool_name: str,
        timeout: Annotated[  # the documented name
            float | None, Query(ge=0, le=86400, description="Seconds to wait for a free sandbox")
        ] = None,
    ) -> JSONResponse:
        """Callers are served first come, first served. What a call leaves behind is gone before the next one."""
        self._answers.share()
        parameters = await json_object(request) or {}
        call = ToolCall("", tool_name, parameters)
        wait_s = WAIT_DEFAULT_S if timeout is None else timeout
        return JSONResponse(await while_connected(request, self._run_in_pool(call, wait_s)))

    async def _run_in_pool(self, call: ToolCall, wait_s: float) -> dict[str, Any]:
        try:
            sandbox_id, result = await self._core.pools.run(POOL_ID, call, wait_s)
        except InvalidRequest as error:
            return _refused_by_tool(error, call.tool)
        finished = result.finished or Finished(Verdict.INTERNAL_ERROR)
        answer = tool_result(call.tool, result, finished, truncated=result.finished is None)
        answer["metadata"]["sandbox_id"] = sandbox_id
        return answer

    # -- shared

    def _all(self) -> Iterator[Sandbox]:
        token = ""
        while True:
            page = self._core.sandboxes.list(page_size=PAGE_SIZE_MAX, page_token=token)
            yield from page.sandboxes
            token = page.next_page_token
            if not token:
                return

    def _known(self, sandbox_id: str) -> Sandbox:
        try:
            return self._core.sandboxes.get(sandbox_id)
        except SandboxNotFound as error:
            raise Refused(404, "Sandbox not found", headers_of(error)) from None

    def _running(self, sandbox_id: str) -> Sandbox:
        """Finds a sandbox in which something can be run."""
        sandbox = self._core.sandboxes.get(sandbox_id)
        try:
            self._core.sandboxes.record(sandbox_id).running_link()
        except WrongState as error:
            why = f"Sandbox {sandbox_id} is not active (status: SandboxStatus.{sandbox.state.name})"
            hint = "start it again with StartSandbox over gRPC, or create another one"
            raise Refused(404, f"{why}; {hint}", headers_of(error)) from None
        return sandbox

    def _status(self, sandbox: Sandbox) -> SandboxStatus:
        return views.status_of(sandbox, self._core.pools.role(sandbox.id))

    def _info(self, sandbox: Sandbox) -> dict[str, Any]:
        container_id = self._core.sandboxes.record(sandbox.id).container_id
        tools = self._core.sandboxes.tools(sandbox.id)
        return views.sandbox_info(sandbox, self._status(sandbox), container_id, tools)


async def _config(request: Request, kind: SandboxType, failure: str) -> SandboxRequest:
    """Reads the configuration that is the whole body."""
    values = await json_object(request)
    try:
        return sandbox_request(kind, DockerSandboxConfig.model_validate(values or {}))
    except ValidationError as error:
        raise Refused(400, cut(f"{failure}: {error}")) from None
    except EnclaveError as error:
        raise _prefixed(error, failure) from error


def _prefixed(error: EnclaveError, failure: str) -> Exception:
    refusal = refusal_of(error)
    if refusal is None:
        return error
    return Refused(refusal.status, f"{failure}: {refusal.detail}", refusal.headers)


def _validated(model: type[_ModelT], values: Mapping[str, Any]) -> _ModelT:
    """Makes a model of a body, with the documented answer where fields are missing or of a wrong type."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        unknown = [str(detail["loc"][-1])[:64] for detail in details if detail["type"] == "extra_forbidden"]
        if unknown:
            known = ", ".join(model.model_fields)
            raise Refused(400, cut(f"unknown field {unknown[0]!r}; known are {known}")) from None
        raise RequestValidationError([{**detail, "loc": ("body", *detail["loc"])} for detail in details]) from None


def _refused_by_tool(error: InvalidRequest, tool: str) -> dict[str, Any]:
    """Words the refusal of well-formed nonsense as a result. Raises the error again if it is another."""
    if all(violation.reason == "TOOL_REFUSED" for violation in error.violations):
        return refused_result(tool, "; ".join(violation.description for violation in error.violations))
    raise error


async def _with_first(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in chunks:
        yield chunk
