"""A daemon made of dictionaries: the generated servicers over a real gRPC server on a unix socket.

Sandboxes are records. A program is what ``programs`` says for its code or command, or else an echo of it. Tests run
it on a thread of its own, so that the SDK under test may come from any event loop; ``python -m`` runs it as the child
process that the tests of embedded daemons start.
"""

# ruff: noqa: N802  (the methods of generated servicers are named by the contract)
from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import threading
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import execution_service_pb2_grpc as execution_grpc
from ms_enclave.v1 import file_service_pb2 as file_pb
from ms_enclave.v1 import file_service_pb2_grpc as file_grpc
from ms_enclave.v1 import pool_service_pb2 as pool_pb
from ms_enclave.v1 import pool_service_pb2_grpc as pool_grpc
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import sandbox_service_pb2_grpc as sandbox_grpc
from ms_enclave.v1 import system_service_pb2 as system_pb
from ms_enclave.v1 import system_service_pb2_grpc as system_grpc
from ms_enclave.v1 import tool_service_pb2 as tool_pb
from ms_enclave.v1 import tool_service_pb2_grpc as tool_grpc

State = sandbox_pb.Sandbox
DETAILS_KEY = "grpc-status-details-bin"
TOOLS = ("file_operation", "python_executor", "shell_executor")


class Refusal(Exception):
    """A status that a servicer answers with."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        text: str,
        *,
        metadata: dict[str, str] | None = None,
        details: tuple[Message, ...] = (),
    ) -> None:
        super().__init__(text)
        self.code = code
        number: int = code.value[0]
        self.status = status_pb2.Status(code=number, message=text)
        info = error_details_pb2.ErrorInfo(reason=reason, domain="enclaved.ms-enclave", metadata=metadata or {})
        for detail in (info, *details):
            self.status.details.add().Pack(detail)


def retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(seconds * 1e9))
    return info


def violation(field: str, description: str, reason: str = "INVALID") -> error_details_pb2.BadRequest:
    entry = error_details_pb2.BadRequest.FieldViolation(field=field, description=description, reason=reason)
    return error_details_pb2.BadRequest(field_violations=[entry])


def not_found(sandbox_id: str) -> Refusal:
    return Refusal(grpc.StatusCode.NOT_FOUND, "SANDBOX_NOT_FOUND", f"sandbox {sandbox_id!r} not found")


def guest_unavailable(seconds: float = 0.01) -> Refusal:
    text = "the guest is not connected"
    return Refusal(grpc.StatusCode.UNAVAILABLE, "GUEST_UNAVAILABLE", text, details=(retry_info(seconds),))


def exited(code: int = 0, **fields: Any) -> execution_pb.Finished:
    return execution_pb.Finished(verdict=execution_pb.VERDICT_EXITED, exit_code=code, attested=True, **fields)


def ended(verdict: str, **fields: Any) -> execution_pb.Finished:
    return execution_pb.Finished(verdict=execution_pb.Verdict.Value(f"VERDICT_{verdict}"), **fields)


def result(stdout: bytes = b"", stderr: bytes = b"", finished: execution_pb.Finished | None = None) -> Any:
    return execution_pb.RunResponse(stdout=stdout, stderr=stderr, finished=finished or exited())


Program = Callable[[execution_pb.ExecutionSpec], Awaitable[execution_pb.RunResponse]]


class FakeDaemon:
    """What the fake knows, what it was asked, and what it is told to answer."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, sandbox_pb.Sandbox] = {}
        self.history: list[sandbox_pb.StateChange] = []
        self.changes: list[list[sandbox_pb.WatchSandboxesResponse | Refusal]] = []
        """What the next watches bring; a refusal ends one, and others stay open."""
        self.made_by_request: dict[str, str] = {}
        """Ids of sandboxes by the requests that made them."""
        self.pools: dict[str, list[str]] = {}
        self.protections: list[system_pb.Protection] = []
        self.files: dict[tuple[str, str], tuple[bytes, int]] = {}
        self.requests: list[Message] = []
        """Every request, in the order of arrival."""
        self.refusals: dict[str, deque[Refusal]] = defaultdict(deque)
        """What the next calls of a method are refused with."""
        self.lost_answers: dict[str, int] = defaultdict(int)
        """How many of the next calls of a method are done and then answered with UNAVAILABLE."""
        self.stuck: set[str] = set()
        """Methods that are done and then never answered."""
        self.programs: dict[str, execution_pb.RunResponse | Program] = {}
        self.events: list[list[execution_pb.ExecutionEvent | Refusal]] = []
        """What the next streams (Execute or Attach) bring; a refusal ends one."""
        self.cancelled: set[str] = set()
        self.cancel_seen = threading.Event()
        self.running = threading.Event()
        """Set when a program that runs until it is cancelled has started."""
        self.silent = False
        """Whether streams bring nothing at all."""
        self.ends_with_input = False
        """Whether what `Execute` brings comes only after the end of the input."""
        self.begins_at_once = False
        """Whether `Execute` brings its first event before that."""
        self.opened = threading.Event()
        """Set when a stream was opened."""
        self.sent_up: list[execution_pb.ExecuteRequest] = []
        """What such streams were sent after their first message."""
        self.endless = False
        """Whether streams stay open after their events."""

    # -- for tests -----------------------------------------------------------------------------------------------

    def asked(self, kind: type[Message]) -> list[Any]:
        """Returns the requests of one kind."""
        return [request for request in self.requests if isinstance(request, kind)]

    async def until_cancelled(self, spec: execution_pb.ExecutionSpec) -> execution_pb.RunResponse:
        """A program that never ends by itself."""
        self.running.set()
        await asyncio.Event().wait()
        return result()

    # -- for the servicers ---------------------------------------------------------------------------------------

    async def took(self, request: Message, context: Any) -> None:
        self.requests.append(request)
        waiting = self.refusals[type(request).__name__.removesuffix("Request")]
        if waiting:
            await refuse(context, waiting.popleft())

    async def answered(self, request: Message, context: Any) -> None:
        name = type(request).__name__.removesuffix("Request")
        if self.lost_answers[name]:
            self.lost_answers[name] -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was lost")
        if name in self.stuck:
            self.running.set()
            await asyncio.Event().wait()

    async def sandbox(self, sandbox_id: str, context: Any) -> sandbox_pb.Sandbox:
        if sandbox_id not in self.sandboxes:
            await refuse(context, not_found(sandbox_id))
        return self.sandboxes[sandbox_id]

    async def run(self, spec: execution_pb.ExecutionSpec) -> execution_pb.RunResponse:
        parameters = json.loads(spec.parameters_json)
        text = parameters.get("code") or parameters.get("command") or parameters.get("operation") or ""
        text = " ".join(text) if isinstance(text, list) else text
        program = self.programs.get(text)
        if program is None:
            return result(text.encode())
        return program if isinstance(program, execution_pb.RunResponse) else await program(spec)


async def refuse(context: Any, refusal: Refusal) -> None:
    trailing = ((DETAILS_KEY, refusal.status.SerializeToString()),)
    await context.abort(refusal.code, refusal.status.message, trailing)


class _Sandboxes(sandbox_grpc.SandboxServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon

    async def CreateSandbox(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        if request.request_id and request.request_id in self.daemon.made_by_request:
            made = self.daemon.sandboxes[self.daemon.made_by_request[request.request_id]]
            return sandbox_pb.CreateSandboxResponse(sandbox=made)
        if request.sandbox_id in self.daemon.sandboxes:
            text = f"sandbox {request.sandbox_id!r} exists already"
            await refuse(context, Refusal(grpc.StatusCode.ALREADY_EXISTS, "SANDBOX_EXISTS", text))
        made = sandbox_pb.Sandbox(id=request.sandbox_id, state=State.STATE_RUNNING, spec=request.spec, uid=70001)
        made.labels.update(request.labels)
        made.create_time.GetCurrentTime()
        made.update_time.GetCurrentTime()
        if not made.spec.HasField("memory_limit_bytes"):
            made.spec.memory_limit_bytes = 512 * 1024**2
            made.adjustments.add(field="memory_limit", wanted="4g", granted="512m", rule="memory")
        self.daemon.sandboxes[made.id] = made
        self.daemon.made_by_request[request.request_id] = made.id
        await self.daemon.answered(request, context)
        return sandbox_pb.CreateSandboxResponse(sandbox=made)

    async def GetSandbox(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        found = await self.daemon.sandbox(request.sandbox_id, context)
        return sandbox_pb.GetSandboxResponse(sandbox=found, history=self.daemon.history)

    async def WatchSandboxes(self, request: Any, context: Any) -> None:
        await self.daemon.took(request, context)
        for change in self.daemon.changes.pop(0):
            if isinstance(change, Refusal):
                await refuse(context, change)
            await context.write(change)
        await asyncio.Event().wait()

    async def ListSandboxes(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        wanted = request.labels.items()
        found = [one for one in self.daemon.sandboxes.values() if wanted <= dict(one.labels).items()]
        first = int(request.page_token or 0)
        more = str(first + 2) if len(found) > first + 2 else ""
        return sandbox_pb.ListSandboxesResponse(sandboxes=found[first : first + 2], next_page_token=more, revision=17)

    async def StartSandbox(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        found = await self.daemon.sandbox(request.sandbox_id, context)
        found.state = State.STATE_RUNNING
        return sandbox_pb.StartSandboxResponse(sandbox=found)

    async def StopSandbox(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        found = await self.daemon.sandbox(request.sandbox_id, context)
        found.state = State.STATE_STOPPED
        return sandbox_pb.StopSandboxResponse(sandbox=found)

    async def PauseSandbox(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        found = await self.daemon.sandbox(request.sandbox_id, context)
        found.state = State.STATE_PAUSED
        return sandbox_pb.PauseSandboxResponse(sandbox=found)

    async def UpdateSandbox(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        found = await self.daemon.sandbox(request.sandbox_id, context)
        if request.HasField("labels"):
            found.labels.clear()
            found.labels.update(request.labels.labels)
        if request.HasField("cpu_limit"):
            found.spec.cpu_limit = request.cpu_limit
        return sandbox_pb.UpdateSandboxResponse(sandbox=found)

    async def ResumeSandbox(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        found = await self.daemon.sandbox(request.sandbox_id, context)
        found.state = State.STATE_RUNNING
        return sandbox_pb.ResumeSandboxResponse(sandbox=found)

    async def DeleteSandbox(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        await self.daemon.sandbox(request.sandbox_id, context)
        del self.daemon.sandboxes[request.sandbox_id]
        await self.daemon.answered(request, context)
        return sandbox_pb.DeleteSandboxResponse()


class _Executions(execution_grpc.ExecutionServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon

    async def Run(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        await self.daemon.sandbox(request.spec.sandbox_id, context)
        answer = await self.daemon.run(request.spec)
        answer.execution_id = request.spec.execution_id
        await self.daemon.answered(request, context)
        return answer

    async def Execute(self, requests: Any, context: Any) -> None:
        first = await anext(aiter(requests))
        await self.daemon.took(first, context)
        self.daemon.opened.set()
        if self.daemon.begins_at_once:
            await context.write(execution_pb.ExecuteResponse(event=self.daemon.events[0][0]))
        if self.daemon.ends_with_input:
            async for request in requests:
                self.daemon.sent_up.append(request)
                if request.HasField("end_of_input"):
                    break
        await self._write(context, execution_pb.ExecuteResponse)

    async def Attach(self, request: Any, context: Any) -> None:
        await self.daemon.took(request, context)
        await self._write(context, execution_pb.AttachResponse)

    async def CancelExecution(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        self.daemon.cancelled.add(request.execution_id)
        self.daemon.cancel_seen.set()
        return execution_pb.CancelExecutionResponse()

    async def _write(self, context: Any, kind: type[Any]) -> None:
        if self.daemon.silent:
            await asyncio.Event().wait()
        for event in self.daemon.events.pop(0):
            if isinstance(event, Refusal):
                await refuse(context, event)
            else:
                await context.write(kind(event=event))
        if self.daemon.endless:
            await asyncio.Event().wait()


class _Tools(tool_grpc.ToolServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon

    async def ListTools(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        enabled = set(TOOLS)
        if request.sandbox_id:
            spec = (await self.daemon.sandbox(request.sandbox_id, context)).spec
            if spec.HasField("tools"):
                enabled = {"shell_executor" if tool.name == "bash" else tool.name for tool in spec.tools.tools}
        answer = tool_pb.ListToolsResponse()
        for name in sorted(enabled):
            parameters = {"type": "object", "properties": {"code": {"type": "string"}, "timeout": {"type": "integer"}}}
            function = {"name": name, "description": f"the daemon's {name}", "parameters": parameters}
            schema = json.dumps({"type": "function", "function": function})
            aliases = ["bash"] if name == "shell_executor" else []
            answer.tools.add(name=name, aliases=aliases, description=f"the daemon's {name}", schema_json=schema)
        return answer


class _Files(file_grpc.FileServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon

    async def ReadFile(self, request: Any, context: Any) -> None:
        await self.daemon.took(request, context)
        found = self.daemon.files.get((request.sandbox_id, request.path))
        if found is None:
            await refuse(context, Refusal(grpc.StatusCode.NOT_FOUND, "FILE_NOT_FOUND", f"no such file: {request.path}"))
        else:
            for start in range(0, len(found[0]), 1000):
                await context.write(file_pb.ReadFileResponse(data=found[0][start : start + 1000]))

    async def WriteFile(self, requests: Any, context: Any) -> Any:
        data = b""
        opening = file_pb.OpenFile()
        async for request in requests:
            if request.HasField("open"):
                opening = request.open
                await self.daemon.took(opening, context)
            else:
                data += request.data
        self.daemon.files[opening.sandbox_id, opening.path] = (data, opening.mode)
        return file_pb.WriteFileResponse(size_bytes=len(data))


class _Pools(pool_grpc.PoolServiceServicer):
    def __init__(self, daemon: FakeDaemon, sandboxes: _Sandboxes) -> None:
        self.daemon = daemon
        self.sandboxes = sandboxes

    async def InitializePool(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        if request.pool_id not in self.daemon.pools:
            made = []
            for number in range(request.size):
                asked = sandbox_pb.CreateSandboxRequest(sandbox_id=f"m{number}-{request.pool_id}", spec=request.spec)
                asked.labels.update(request.labels)
                made.append((await self.sandboxes.CreateSandbox(asked, context)).sandbox.id)
            self.daemon.pools[request.pool_id] = made
        return pool_pb.InitializePoolResponse(pool_id=request.pool_id, sandbox_ids=self.daemon.pools[request.pool_id])

    async def RunInPool(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        members = self.daemon.pools.get(request.pool_id)
        if members is None:
            text = f"pool {request.pool_id!r} not found; initialize it first"
            await refuse(context, Refusal(grpc.StatusCode.NOT_FOUND, "POOL_NOT_FOUND", text))
            return None
        answer = await self.daemon.run(request.spec)
        answer.execution_id = request.spec.execution_id
        return pool_pb.RunInPoolResponse(run=answer, sandbox_id=members[0])

    async def Claim(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        return pool_pb.ClaimResponse(sandbox=self.daemon.sandboxes[self.daemon.pools[request.pool_id].pop()])

    async def DeletePool(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        for sandbox_id in self.daemon.pools.pop(request.pool_id):
            self.daemon.sandboxes.pop(sandbox_id, None)
        await self.daemon.answered(request, context)
        return pool_pb.DeletePoolResponse()


class _System(system_grpc.SystemServiceServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon

    async def GetInfo(self, request: Any, context: Any) -> Any:
        await self.daemon.took(request, context)
        info = system_pb.GetInfoResponse(version="9.9", embedded=True, active_sandboxes=len(self.daemon.sandboxes))
        info.engine.name, info.engine.version, info.engine.available = "fake", str(os.getpid()), True
        info.start_time.GetCurrentTime()
        info.protections.extend(self.daemon.protections)
        info.identity.name, info.identity.role = "ci", "grader"
        info.identity.kind = system_pb.Identity.KIND_TOKEN
        await self.daemon.answered(request, context)
        return info


async def serve(daemon: FakeDaemon, path: Path) -> grpc.aio.Server:
    """Starts to serve at a socket."""
    server = grpc.aio.server()
    sandboxes = _Sandboxes(daemon)
    sandbox_grpc.add_SandboxServiceServicer_to_server(sandboxes, server)
    pool_grpc.add_PoolServiceServicer_to_server(_Pools(daemon, sandboxes), server)
    execution_grpc.add_ExecutionServiceServicer_to_server(_Executions(daemon), server)
    tool_grpc.add_ToolServiceServicer_to_server(_Tools(daemon), server)
    file_grpc.add_FileServiceServicer_to_server(_Files(daemon), server)
    system_grpc.add_SystemServiceServicer_to_server(_System(daemon), server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    return server


@contextlib.contextmanager
def served(daemon: FakeDaemon, path: Path) -> Iterator[None]:
    """Serves on a thread with an event loop of its own."""
    ready = threading.Event()
    stop: list[Callable[[], None]] = []

    async def main() -> None:
        loop, ending = asyncio.get_running_loop(), asyncio.Event()
        stop.append(lambda: loop.call_soon_threadsafe(ending.set))
        server = await serve(daemon, path)
        ready.set()
        await ending.wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield
    finally:
        stop[0]()
        thread.join(20)


async def _child(socket: Path, parent_fd: int | None) -> None:
    """Serves until the pipe to the parent closes."""
    server = await serve(FakeDaemon(), socket)
    if parent_fd is not None:
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(parent_fd, gone.set)
        await gone.wait()
        await server.stop(0)
    else:
        await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen-unix", type=Path, required=True)
    parser.add_argument("--embedded-parent-fd", type=int)
    arguments, _ = parser.parse_known_args()
    asyncio.run(_child(arguments.listen_unix, arguments.embedded_parent_fd))
