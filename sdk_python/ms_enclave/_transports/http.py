"""The transport over HTTP: the documented routes of a server, ours or an earlier one.

The routes say less than the contract: they do not start a stopped sandbox, show a program while it runs or read a
file. Whoever asks for that is told so, and what to use instead.
"""

from __future__ import annotations

import posixpath
import re
import ssl
import tarfile
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import IO, Any, Final, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from ms_enclave import _convert as convert
from ms_enclave import _results as results
from ms_enclave import _status as status
from ms_enclave._model import (
    Event,
    ExecutionOptions,
    HealthCheckResult,
    SandboxInfo,
    SandboxStatus,
    ToolInfo,
    ToolResult,
)
from ms_enclave._model.pools import PoolOptions
from ms_enclave._transports.base import POOL_WAIT_S, SandboxPlan, ToolCall
from ms_enclave._transports.http_calls import HttpCalls, Request
from ms_enclave._transports.http_files import HttpFiles
from ms_enclave._transports.http_unserved import (
    UnservedContexts,
    UnservedExecutions,
    UnservedLifecycle,
    UnservedPools,
    no_pools,
    no_streams,
)
from ms_enclave.errors import InternalError, InvalidRequest, NotServed, SandboxNotFound

REQUEST_S: Final = 60.0
"""How long a call may take that neither runs a program nor makes a sandbox."""
CREATE_S: Final = 900.0
"""How long the making of sandboxes may take, the pull of their image included."""
RUN_S: Final = 24 * 3600.0
"""How long a program may run as far as we know, if its call does not say. The server's policy says less."""
ANSWER_S: Final = 30.0
"""How long a server may take beyond the program's own time."""
FILE_S: Final = 600.0
"""How long a file may take."""
SPOOL_BYTES: Final = 1024 * 1024
"""How much of a file is kept in memory while its size is found out; a larger one goes to the disk."""
CHUNK_BYTES: Final = 256 * 1024

_ALIASES: Final = {"shell_executor": ("bash",)}
"""The routes list tools without their aliases; these are the documented ones."""

ModelT = TypeVar("ModelT", bound=BaseModel)


class HttpTransport:
    """A way to the server at one URL. May be called from any event loop and thread."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        request_timeout_s: float = REQUEST_S,
        trusted: ssl.SSLContext | None = None,
    ) -> None:
        """Takes ``http://host:port`` (or ``https``, or ``unix:/path/to/socket``) and the key that the server wants.

        ``trusted``: how its certificate is checked, if not by ``MS_ENCLAVE_CA`` or those that everybody trusts. Raises
        `InvalidRequest` for an address that is none, and for a token that would travel in the open.
        """
        self._calls = HttpCalls(base_url, api_key, trusted)
        self.executions = UnservedExecutions()
        self.contexts = UnservedContexts()
        self.lifecycle = UnservedLifecycle()
        self.pools = UnservedPools()
        self.files = HttpFiles(self._send_archive)
        self._request_s = request_timeout_s

    @property
    def address(self) -> str:
        return self._calls.address

    async def close(self) -> None:
        """Closes the connections of the running loop. A later call opens others."""
        await self._calls.close()

    # -- sandboxes -----------------------------------------------------------------------------------------------

    async def create_sandbox(self, plan: SandboxPlan) -> SandboxInfo:
        """Creates a sandbox. The server may choose another id than the one planned: that of the answer counts."""
        query = {"sandbox_type": "docker", "sandbox_id": convert.text(plan.sandbox_id, "sandbox_id")}
        request = Request("POST", "/sandbox/create", query, _config(plan))
        answer = await self._calls.call(request, timeout_s=CREATE_S)
        return await self.get_sandbox(self._entry(answer, "sandbox_id", str))

    async def get_sandbox(self, sandbox_id: str) -> SandboxInfo:
        answer = await self._sandbox_call("GET", sandbox_id, "", repeatable=True)
        return self._model(SandboxInfo, answer)

    async def list_sandboxes(self, labels: Mapping[str, str]) -> list[SandboxInfo]:
        """Lists all sandboxes that the server shows us. The routes know no labels: only an empty wish is served."""
        if labels:
            raise NotServed("the HTTP routes list all sandboxes of a server; they know no labels")
        answer = await self._calls.call(Request("GET", "/sandboxes", repeatable=True), timeout_s=self._request_s)
        if not isinstance(answer, list):
            raise self._strange("/sandboxes")
        return [self._model(SandboxInfo, entry) for entry in answer]

    async def start_sandbox(self, sandbox_id: str) -> SandboxInfo:
        """Leaves a running sandbox alone; a stopped one cannot be started by any of the routes."""
        found = await self.get_sandbox(sandbox_id)
        if found.status is not SandboxStatus.RUNNING:
            raise NotServed(
                f"Sandbox {sandbox_id} is not active (status: {found.status}) and cannot be started again over HTTP; "
                "delete it and create another"
            )
        return found

    async def stop_sandbox(self, sandbox_id: str) -> SandboxInfo:
        await self._sandbox_call("POST", sandbox_id, "/stop", repeatable=True)
        return await self.get_sandbox(sandbox_id)

    async def delete_sandbox(self, sandbox_id: str, *, wait: bool = True) -> None:
        """Deletes a sandbox, and waits for that in any case: the routes know nothing else."""
        retries = self._calls.retries()
        path = f"/sandbox/{_segment(sandbox_id)}"
        try:
            request = Request("DELETE", path, repeatable=True)
            await self._calls.call(request, timeout_s=self._request_s, retries=retries)
        except SandboxNotFound as error:
            if not retries.used:
                raise _naming(error, sandbox_id) from None

    # -- tools ---------------------------------------------------------------------------------------------------

    async def list_tools(self, sandbox_id: str = "") -> list[ToolInfo]:
        if not sandbox_id:
            raise NotServed("the HTTP routes list the tools of a sandbox, not those of a server")
        answer = await self._sandbox_call("GET", sandbox_id, "/tools", repeatable=True)
        try:
            return [
                ToolInfo(name, _ALIASES.get(name, ()), str(schema["function"].get("description", "")), schema)
                for name, schema in answer.items()
            ]
        except (AttributeError, KeyError, TypeError):
            raise self._strange("/sandbox/…/tools") from None

    async def run(self, call: ToolCall) -> ToolResult:
        if call.options != ExecutionOptions():
            raise NotServed(
                "the HTTP routes take the parameters of a tool and no options; for those use gRPC: "
                "LocalSandboxManager(address=...) with the address of a daemon, or MS_ENCLAVE_ADDRESS"
            )
        parameters = convert.to_json(call.parameters, "parameters")
        names = convert.to_json({"sandbox_id": call.sandbox_id, "tool_name": call.tool}, "tool_name")
        # The parameters can be large, so they are written once.
        request = Request("POST", "/sandbox/tool/execute", body=f'{names[:-1]},"parameters":{parameters}}}')
        try:
            return await self._run(call, request, (call.timeout_s or RUN_S) + ANSWER_S)
        except SandboxNotFound as error:
            raise _naming(error, call.sandbox_id) from None

    async def stream(self, call: ToolCall) -> AsyncGenerator[Event, None]:
        raise no_streams()
        yield  # makes it a generator, which the Protocol asks for

    # -- pools ---------------------------------------------------------------------------------------------------

    async def initialize_pool(
        self, pool_id: str, size: int, plan: SandboxPlan, options: PoolOptions | None = None
    ) -> list[str]:
        """Makes the server's pool: it has one for all its callers, whatever ``pool_id`` says."""
        if options is not None:
            raise no_pools()
        query = {"pool_size": str(size), "sandbox_type": "docker"}
        request = Request("POST", "/pool/initialize", query, _config(plan), repeatable=True)
        answer = await self._calls.call(request, timeout_s=CREATE_S)
        return [str(sandbox_id) for sandbox_id in self._entry(answer, "sandbox_ids", list)]

    async def run_in_pool(self, pool_id: str, call: ToolCall, *, wait_timeout_s: float | None = None) -> ToolResult:
        wait_s = POOL_WAIT_S if wait_timeout_s is None else wait_timeout_s
        query = {"tool_name": convert.text(call.tool, "tool_name"), "timeout": f"{wait_s:g}"}
        request = Request("POST", "/pool/execute", query, convert.to_json(call.parameters, "parameters"))
        return await self._run(call, request, wait_s + (call.timeout_s or RUN_S) + ANSWER_S)

    async def delete_pool(self, pool_id: str) -> None:
        """Cannot be done: the pool is the server's and may serve others."""
        raise NotServed("the HTTP routes cannot delete the pool of a server; it ends with the server")

    # -- files ---------------------------------------------------------------------------------------------------

    async def read_file(self, sandbox_id: str, path: str) -> AsyncGenerator[bytes, None]:
        raise NotServed(
            "the HTTP routes carry no file out of a sandbox; run file_operation with operation 'read' for a text, or "
            "use LocalSandboxManager with the address of a daemon"
        )
        yield b""  # makes it a generator, which the Protocol asks for

    async def write_file(
        self, sandbox_id: str, path: str, content: Callable[[], AsyncIterator[bytes]], *, mode: int = 0o644
    ) -> int:
        """Writes a file as an archive with one member, whose size has to be known before it is sent."""
        folder, name = posixpath.split(convert.text(path, "path"))
        if name in ("", ".", "..") or "\0" in path:
            raise InvalidRequest(f"path: {path!r} does not name a file")
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
            async for data in content():
                spool.write(data)
            member = tarfile.TarInfo(name)
            member.size, member.mode = spool.tell(), mode
            request = Request(
                "POST",
                f"/sandbox/{_segment(sandbox_id)}/archive",
                {"target_dir": folder or "."},
                lambda: _archive(member, spool),
                length_bytes=_archive_bytes(member),
                repeatable=True,
            )
            try:
                await self._calls.call(request, timeout_s=FILE_S)
            except SandboxNotFound as error:
                raise _naming(error, sandbox_id) from None
            return member.size

    async def _send_archive(self, sandbox_id: str, target: str, archive: IO[bytes], size: int) -> None:
        request = Request(
            "POST",
            f"/sandbox/{_segment(sandbox_id)}/archive",
            {"target_dir": convert.text(target, "target")},
            lambda: _pieces(archive),
            length_bytes=size,
            repeatable=True,
        )
        try:
            await self._calls.call(request, timeout_s=FILE_S)
        except SandboxNotFound as error:
            raise _naming(error, sandbox_id) from None

    # -- the server ----------------------------------------------------------------------------------------------

    async def health(self, *, timeout_s: float | None = None) -> HealthCheckResult:
        request = Request("GET", "/health", repeatable=True)
        if timeout_s is None:
            answer = await self._calls.call(request, timeout_s=self._request_s)
        else:
            answer = await self._calls.call(request, timeout_s=timeout_s, retries=self._calls.no_retries())
        return self._model(HealthCheckResult, answer)

    async def stats(self) -> dict[str, Any]:
        """Returns the statistics of the server: of everything that it keeps, whoever made it."""
        answer = await self._calls.call(Request("GET", "/stats", repeatable=True), timeout_s=self._request_s)
        if not isinstance(answer, dict):
            raise self._strange("/stats")
        return answer

    # -- inside --------------------------------------------------------------------------------------------------

    async def _sandbox_call(self, method: str, sandbox_id: str, rest: str, *, repeatable: bool) -> Any:
        request = Request(method, f"/sandbox/{_segment(sandbox_id)}{rest}", repeatable=repeatable)
        try:
            return await self._calls.call(request, timeout_s=self._request_s)
        except SandboxNotFound as error:
            raise _naming(error, sandbox_id) from None

    async def _run(self, call: ToolCall, request: Request, timeout_s: float) -> ToolResult:
        try:
            answer = await self._calls.call(request, timeout_s=timeout_s)
        except InvalidRequest as error:
            if not status.is_tool_refusal(error):
                raise
            return results.refused_result(call.tool, "; ".join(v.description for v in error.violations))
        return self._model(ToolResult, answer)

    def _model(self, model: type[ModelT], answer: object) -> ModelT:
        try:
            return model.model_validate(answer)
        except ValidationError as error:
            raise InternalError(f"the server at {self.address} answered with no {model.__name__}: {error}") from None

    def _entry(self, answer: object, name: str, kind: type[Any]) -> Any:
        found = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(found, kind):
            raise InternalError(f"the server at {self.address} answered without {name!r}")
        return found

    def _strange(self, path: str) -> InternalError:
        return InternalError(f"the server at {self.address} answered {path} with something else")


def _config(plan: SandboxPlan) -> str:
    """Writes the body of a request for sandboxes: what the caller set, and the tools."""
    asked = plan.config.model_fields_set - {"tools_config"}
    body = plan.config.model_dump(mode="json", include=asked)
    # Nothing said means no tools there, and null means all of them.
    body["tools_config"] = None if plan.tools is None else {name: dict(given) for name, given in plan.tools.items()}
    return convert.to_json(body, "config")


def _segment(sandbox_id: str) -> str:
    """Writes an id as one segment of a path."""
    if sandbox_id.strip(".") == "":
        raise InvalidRequest(f"sandbox_id: {sandbox_id!r} is no id of a sandbox")
    return quote(convert.text(sandbox_id, "sandbox_id"), safe="")


def _naming(error: SandboxNotFound, sandbox_id: str) -> SandboxNotFound:
    """Makes the text name the sandbox, which the documented one does not always do."""
    if re.search(rf"(?<!\w){re.escape(sandbox_id)}(?!\w)", error.message):
        return error
    return SandboxNotFound(f"Sandbox {sandbox_id} not found")


def _archive_bytes(member: tarfile.TarInfo) -> int:
    return len(member.tobuf()) + _padded(member.size) + 2 * tarfile.BLOCKSIZE


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


async def _archive(member: tarfile.TarInfo, content: IO[bytes]) -> AsyncIterator[bytes]:
    yield member.tobuf()
    async for data in _pieces(content):
        yield data
    yield bytes(_padded(member.size) - member.size + 2 * tarfile.BLOCKSIZE)


async def _pieces(content: IO[bytes]) -> AsyncIterator[bytes]:
    content.seek(0)
    while data := content.read(CHUNK_BYTES):
        yield data
