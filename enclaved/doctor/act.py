"""What a hostile client may use: calls whose answers are written down, sandboxes that are removed afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc.aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.doctor import host_view, raw
from enclaved.doctor.attacks.base import Answer, Evidence, Program, Run, Told, told_in
from enclaved.doctor.connection import Daemon, Stubs
from enclaved.doctor.engine import EngineSilent, EngineView
from enclaved.doctor.running import Gathered, execute, spec_of

_AnyT = TypeVar("_AnyT")

CALL_S: Final = 30.0
"""How long one call of a client may take before it counts as unanswered."""
CREATE_S: Final = 90.0
_POLL_S = 0.1


@dataclass
class Act:
    """One hostile client at work, with a sandbox of its own."""

    daemon: Daemon
    nonce: str
    facts_for_programs: Mapping[str, Any]
    spec: sandbox_pb.SandboxSpec
    sandbox_id: str = ""
    engine: EngineView | None = None
    answers: dict[str, Answer] = field(default_factory=dict)
    facts: dict[str, Told] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    """Sandboxes to remove at the end."""

    @property
    def stubs(self) -> Stubs:
        """The daemon's services."""
        return self.daemon.stubs

    @property
    def http_key(self) -> str:
        """The key of the HTTP API."""
        return self.daemon.http_key

    def small_spec(self) -> sandbox_pb.SandboxSpec:
        """Returns what every sandbox here is."""
        return self.spec

    def evidence(self, run: Run | None = None, **facts: Told) -> Evidence:
        """Puts together what this client saw."""
        told = {} if run is None else self.told(run)
        return Evidence(run=run, told=told, answers=dict(self.answers), facts={**self.facts, **facts})

    def told(self, run: Run) -> dict[str, Told]:
        """Reads what a program told."""
        return told_in(run.stdout, self.nonce)

    async def ask(self, name: str, call: Awaitable[_AnyT], *, answer_s: float = CALL_S) -> _AnyT | None:
        """Waits for a call and writes its answer down. One without an answer in time is not answered: ``timeout``."""
        try:
            async with asyncio.timeout(answer_s):
                found = await call
        except grpc.aio.AioRpcError as error:
            self.answers[name] = Answer(error.code().name, str(error.details())[:300])
            return None
        except TimeoutError:
            self.answers[name] = Answer("timeout", f"no answer within {answer_s:g} s")
            return None
        except ValueError as error:  # our own library refuses to send it: nothing reached the daemon
            self.answers[name] = Answer("INVALID_ARGUMENT", f"not sent: {error}"[:300])
            return None
        self.answers[name] = Answer("OK")
        return found

    async def attempted(self, call: Awaitable[_AnyT]) -> _AnyT | None:
        """Waits for a call whose answer does not matter, at most 30 s."""
        try:
            async with asyncio.timeout(CALL_S):
                return await call
        except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError):
            return None

    async def create(
        self,
        name: str,
        request: sandbox_pb.CreateSandboxRequest,
        *,
        timeout_s: float = CREATE_S,
        keep_for_removal: bool = True,
    ) -> sandbox_pb.Sandbox | None:
        """Asks for a sandbox, and writes the answer down under a name. What is granted is removed at the end."""
        call = self.stubs.sandboxes.CreateSandbox(request, timeout=timeout_s)
        made = await self.ask(name, call, answer_s=timeout_s + 5)
        if made is None:
            return None
        if keep_for_removal and made.sandbox.id not in self.made:
            self.made.append(made.sandbox.id)
        return made.sandbox

    async def sandbox(self, **fields: Any) -> str:
        """Makes another sandbox and returns its id. Raises `grpc.aio.AioRpcError`."""
        spec = sandbox_pb.SandboxSpec()
        spec.CopyFrom(self.spec)
        spec.MergeFrom(sandbox_pb.SandboxSpec(**fields))
        request = sandbox_pb.CreateSandboxRequest(spec=spec, labels={"doctor": self.nonce})
        made = await self.stubs.sandboxes.CreateSandbox(request, timeout=CREATE_S)
        self.made.append(made.sandbox.id)
        return made.sandbox.id

    async def remove(self, sandbox_id: str) -> None:
        """Deletes a sandbox and waits until nothing of it is left, at most 90 s."""
        request = sandbox_pb.DeleteSandboxRequest(sandbox_id=sandbox_id, wait=True)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self.stubs.sandboxes.DeleteSandbox(request, timeout=CREATE_S)
        if sandbox_id in self.made:
            self.made.remove(sandbox_id)

    async def stop(self, sandbox_id: str) -> None:
        """Stops a sandbox."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self.stubs.sandboxes.StopSandbox(
                sandbox_pb.StopSandboxRequest(sandbox_id=sandbox_id), timeout=CREATE_S
            )

    async def close(self) -> None:
        """Removes every sandbox that this client made."""
        await asyncio.gather(*(self.remove(sandbox_id) for sandbox_id in tuple(self.made)))

    async def is_gone(self, sandbox_id: str, patience_s: float = 20.0) -> bool:
        """Waits until a sandbox can no longer be found, and its container neither."""
        request = sandbox_pb.GetSandboxRequest(sandbox_id=sandbox_id)

        async def look() -> bool:
            try:
                await self.stubs.sandboxes.GetSandbox(request, timeout=CALL_S)
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.NOT_FOUND and not await self.has_container(sandbox_id)
            return False

        return await _until(look, patience_s)

    async def has_container(self, sandbox_id: str) -> bool:
        """Tells whether the engine has a container of a sandbox; without an engine to ask, no."""
        return await self._container(sandbox_id) is not None

    async def host_config(self) -> dict[str, Any] | None:
        """Returns how the engine runs this client's sandbox; ``None`` if that cannot be seen."""
        container = await self._container(self.sandbox_id)
        return None if container is None else dict(container.get("HostConfig") or {})

    async def processes(self, name: str, sandbox_id: str, patience_s: float = 5.0) -> tuple[str, ...] | None:
        """Waits until no process of this name is in a sandbox; returns those that stay.

        Looks from the host where that is possible, else from inside.
        """
        container = await self._container(sandbox_id)
        sees = container is not None and await asyncio.to_thread(host_view.can_see, container)
        if not sees:
            run = await self.run(Program(_LIST.replace("NAME", repr(name))), sandbox_id)
            found = self.told(run).get("processes")
            return tuple(str(each) for each in found) if isinstance(found, list) else None
        assert container is not None
        left: list[int] = []

        async def look() -> bool:
            left[:] = await asyncio.to_thread(host_view.named, container, name)
            return not left

        await _until(look, patience_s)
        return tuple(f"process {pid} of the host" for pid in left)

    async def status(self, name: str, sandbox_id: str) -> dict[str, str] | None:
        """Reads the host's view of the process with a name in a sandbox; ``None`` if it cannot be seen."""
        container = await self._container(sandbox_id)
        if container is None or not await asyncio.to_thread(host_view.can_see, container):
            return None
        found = await asyncio.to_thread(host_view.named, container, name)
        return await asyncio.to_thread(host_view.status, found[0]) if found else None

    async def run(self, program: Program, sandbox_id: str = "") -> Run:
        """Runs a program to its end."""
        return await execute(self.stubs, sandbox_id or self.sandbox_id, program, self.facts_for_programs)

    async def start(self, program: Program, sandbox_id: str) -> asyncio.Task[Run]:
        """Starts a program and waits until it tells that it is ready."""
        waits = Program(program.source, timeout_s=program.timeout_s, stdin=b"", look_when_ready=True)
        is_ready = asyncio.Event()

        async def seen() -> None:
            is_ready.set()

        running = asyncio.create_task(execute(self.stubs, sandbox_id, waits, self.facts_for_programs, seen))
        waiting = asyncio.create_task(is_ready.wait())
        await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return running

    async def run_unread(self, program: Program, *, wait_s: float, readers: int = 0) -> Run:
        """Starts a program, reads nothing for a while, cancels it, and reads the rest."""
        gathered = Gathered(self.nonce)
        call = self.stubs.executions.Execute()
        others: list[Any] = []
        try:
            async with asyncio.timeout(program.timeout_s + CALL_S):
                spec = spec_of(self.sandbox_id, program, self.facts_for_programs)
                await call.write(execution_pb.ExecuteRequest(start=spec))
                gathered.take((await _read(call)).event)
                for _ in range(readers):
                    attach = execution_pb.AttachRequest(execution_id=gathered.execution_id, observe=True)
                    others.append(self.stubs.executions.Attach(attach))
                await asyncio.gather(*(self.attempted(other.read()) for other in others))
                await asyncio.sleep(wait_s)
                await call.write(execution_pb.ExecuteRequest(cancel=execution_pb.Cancel()))
                while gathered.finished is None:
                    gathered.take((await _read(call)).event)
        except (grpc.aio.AioRpcError, TimeoutError, EOFError) as error:
            return gathered.run(f"{type(error).__name__}: {error}"[:300])
        finally:
            call.cancel()
            for other in others:
                other.cancel()
        return gathered.run()

    async def run_unary(self, source: str) -> int:
        """Runs a program by one unary call and returns how many bytes of output its answer has."""
        spec = spec_of(self.sandbox_id, Program(source), self.facts_for_programs)
        answer = await self.ask("run", self.stubs.executions.Run(execution_pb.RunRequest(spec=spec)))
        await self.cancel_executions()
        return 0 if answer is None else len(answer.stdout)

    async def executions_running(self, patience_s: float = 15.0) -> int:
        """Waits until no execution runs in the sandbox; returns how many still do."""
        count = 0

        async def look() -> bool:
            nonlocal count
            count = len(await self._running())
            return not count

        await _until(look, patience_s)
        return count

    async def cancel_executions(self) -> None:
        """Ends every execution of the sandbox."""
        for execution in await self._running():
            request = execution_pb.CancelExecutionRequest(execution_id=execution)
            await self.attempted(self.stubs.executions.CancelExecution(request))

    async def sandboxes_with_label(self, name: str, value: str, *, patience_s: float) -> int:
        """Waits until no sandbox has a label; returns how many still do, those that were answered left out."""
        count = 0

        async def look() -> bool:
            nonlocal count
            request = sandbox_pb.ListSandboxesRequest(labels={name: value})
            found = await self.stubs.sandboxes.ListSandboxes(request, timeout=CALL_S)
            count = sum(one.id not in self.made for one in found.sandboxes)
            return not count

        await _until(look, patience_s)
        return count

    def start_message(self, command: str) -> execution_pb.ExecuteRequest:
        """Returns the first message of a stream that runs a command with input, for at most 10 s."""
        spec = spec_of(
            self.sandbox_id, Program(command, is_shell=True, stdin=b"", timeout_s=10), self.facts_for_programs
        )
        return execution_pb.ExecuteRequest(start=spec)

    async def stream(self, messages: Iterable[execution_pb.ExecuteRequest]) -> None:
        """Sends messages on one stream and waits for its end. Raises `grpc.aio.AioRpcError`."""
        call = self.stubs.executions.Execute()
        try:
            for message in messages:
                await call.write(message)
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
        except asyncio.InvalidStateError:  # it had ended already
            pass
        finally:
            call.cancel()
        await _raise_status(call)

    async def raw_call(self, method: str, data: bytes) -> bytes:
        """Calls a unary method with bytes as they are. Raises `grpc.aio.AioRpcError`."""
        call = self.daemon.channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        answer: bytes = await call(data, timeout=CALL_S)
        return answer

    def connection(self, data: bytes) -> contextlib.AbstractAsyncContextManager[None]:
        """Opens a connection, sends bytes, and keeps it open for as long as the block runs. Raises `OSError`."""
        return raw.connection(self.daemon.socket_path, data)

    async def raw(self, data: bytes, *, wait_s: float) -> None:
        """Opens a connection, sends bytes, and leaves."""
        with contextlib.suppress(OSError):
            async with self.connection(data):
                await asyncio.sleep(wait_s)

    async def http(
        self,
        name: str,
        method: str,
        path: str,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Sends a request of HTTP and writes its status down. ``key``: instead of the right one; empty: none."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}"]
        given = self.http_key if key is None else key
        lines += [f"X-API-Key: {given}"] if given else []
        lines += [f"{field_name}: {value}" for field_name, value in (headers or {}).items()]
        await self.http_raw(name, "\r\n".join([*lines, "", ""]).encode() + body)

    async def http_raw(self, name: str, data: bytes) -> None:
        """Sends bytes to the HTTP API and writes the status of its answer down; ``closed`` if it gives none."""
        try:
            async with asyncio.timeout(CALL_S):
                self.answers[name] = Answer(await raw.http_status(self.daemon.http_socket, data))
        except TimeoutError:
            self.answers[name] = Answer("timeout", f"no answer within {CALL_S:g} s")

    async def _container(self, sandbox_id: str) -> dict[str, Any] | None:
        if self.engine is None:
            return None
        try:
            return await asyncio.to_thread(self.engine.container_of, sandbox_id)
        except EngineSilent:
            return None

    async def _running(self) -> list[str]:
        request = execution_pb.ListExecutionsRequest(
            sandbox_id=self.sandbox_id, state=execution_pb.EXECUTION_STATE_RUNNING, page_size=1000
        )
        found = await self.attempted(self.stubs.executions.ListExecutions(request, timeout=CALL_S))
        return [] if found is None else [execution.execution_id for execution in found.executions]


_LIST: Final = """
found = []
for pid in os.listdir("/proc"):
    try:
        if pid.isdigit() and int(pid) != os.getpid() and open("/proc/%s/comm" % pid).read().strip() == NAME:
            found.append("process %s of the sandbox" % pid)
    except OSError:
        pass
tell("processes", found)
"""


async def _until(look: Callable[[], Awaitable[bool]], patience_s: float) -> bool:
    """Looks again and again until something is so, at most for so many seconds."""
    deadline = asyncio.get_running_loop().time() + patience_s
    while not await look():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


async def _read(call: Any) -> execution_pb.ExecuteResponse:
    answer = await call.read()
    if answer is grpc.aio.EOF:
        await _raise_status(call)
        raise EOFError("the stream ended without a verdict")
    assert isinstance(answer, execution_pb.ExecuteResponse)
    return answer


async def _raise_status(call: Any) -> None:
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )
