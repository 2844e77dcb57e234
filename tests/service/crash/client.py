"""A client that keeps to the contract: it tries again what was cut off, and writes down all that it did and heard."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import execution_service_pb2_grpc as execution_grpc
from ms_enclave.v1 import file_service_pb2 as file_pb
from ms_enclave.v1 import file_service_pb2_grpc as file_grpc
from ms_enclave.v1 import pool_service_pb2 as pool_pb
from ms_enclave.v1 import pool_service_pb2_grpc as pool_grpc
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import sandbox_service_pb2_grpc as sandbox_grpc

from tests.service.crash.history import History, Operation, Run, state_of

PATIENCE_S = 120.0
CALL_S = 30.0
AGAIN_S = 0.05
CHUNK_BYTES = 32 * 1024


class Stubs:
    """All services that clients here use."""

    def __init__(self, channel: aio.Channel) -> None:
        any_channel: Any = channel
        self.sandboxes: Any = sandbox_grpc.SandboxServiceStub(any_channel)
        self.executions: Any = execution_grpc.ExecutionServiceStub(any_channel)
        self.files: Any = file_grpc.FileServiceStub(any_channel)
        self.pools: Any = pool_grpc.PoolServiceStub(any_channel)


class Client:
    """One client. Its calls return once their outcome is certain."""

    def __init__(self, address: str, history: History, name: str = "client") -> None:
        self._address, self._history, self.name = address, history, name

    @asynccontextmanager
    async def stubs(self) -> AsyncIterator[Stubs]:
        """A connection of its own, since one that broke off waits before it tries again."""
        async with aio.insecure_channel(self._address) as channel:
            yield Stubs(channel)

    # -- sandboxes

    async def create(self, request_id: str, **spec: Any) -> str:
        """Creates a sandbox with a request id; returns its id. As often as it is tried, there is one at most."""
        labels = {"request": request_id}
        request = sandbox_pb.CreateSandboxRequest(
            request_id=request_id, spec=sandbox_pb.SandboxSpec(**spec), labels=labels
        )

        def heard(operation: Operation, answer: Any) -> None:
            operation.subject = answer.sandbox.id
            if not spec.get("remove_on_exit", True):
                self._history.keeps_files.add(answer.sandbox.id)

        answer = await self._do("create", request_id, "sandboxes.CreateSandbox", request, wanted=labels, heard=heard)
        return str(answer.sandbox.id)

    async def change(self, kind: str, sandbox_id: str) -> bool:
        """Deletes, stops, starts, pauses or resumes a sandbox; whether it was there and the call made sense."""
        method = f"{kind.title()}Sandbox"
        request = getattr(sandbox_pb, f"{method}Request")(sandbox_id=sandbox_id)
        return await self._do(kind, sandbox_id, f"sandboxes.{method}", request) is not None

    async def update(self, sandbox_id: str, labels: dict[str, str], **limits: Any) -> bool:
        """Gives a sandbox other labels and limits."""
        request = sandbox_pb.UpdateSandboxRequest(
            sandbox_id=sandbox_id, labels=sandbox_pb.Labels(labels=labels), **limits
        )
        return await self._do("update", sandbox_id, "sandboxes.UpdateSandbox", request, wanted=labels) is not None

    async def look(self, sandbox_id: str) -> Any | None:
        """Gets a sandbox; ``None`` if there is none, or one that is being deleted."""
        begun = self._history.now()
        request = sandbox_pb.GetSandboxRequest(sandbox_id=sandbox_id)
        answer = await self._do("look", "", "sandboxes.GetSandbox", request)
        is_there = answer is not None and state_of(answer.sandbox) != "DELETING"
        self._history.looks.append((begun, self._history.now(), sandbox_id, is_there))
        return answer.sandbox if answer is not None and is_there else None

    async def is_gone(self, sandbox_id: str) -> None:
        """Waits until there is no such sandbox."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.look(sandbox_id) is not None:
                await _a_moment()

    async def list(self) -> dict[str, Any]:
        """Lists all sandboxes, by id."""
        found: dict[str, Any] = {}
        token = ""
        while True:
            request = sandbox_pb.ListSandboxesRequest(page_token=token, page_size=1000)
            answer = await self._do("list", "", "sandboxes.ListSandboxes", request)
            found |= {sandbox.id: sandbox for sandbox in answer.sandboxes}
            token = answer.next_page_token
            if not token:
                return found

    # -- files and pools

    async def write(self, sandbox_id: str, path: str, content: bytes) -> bool:
        """Writes a file from the beginning, as often as need be."""

        async def attempt(stubs: Stubs) -> Any:
            async def pieces() -> AsyncIterator[Any]:
                yield file_pb.WriteFileRequest(open=file_pb.OpenFile(sandbox_id=sandbox_id, path=path))
                for start in range(0, len(content), CHUNK_BYTES):
                    yield file_pb.WriteFileRequest(data=content[start : start + CHUNK_BYTES])

            return await stubs.files.WriteFile(pieces(), timeout=CALL_S)

        return await self._try("write", sandbox_id, attempt, wanted=content, answer=path) is not None

    async def read(self, sandbox_id: str, path: str) -> bytes | None:
        """Reads a whole file; ``None`` if there is none."""

        async def attempt(stubs: Stubs) -> bytes:
            request = file_pb.ReadFileRequest(sandbox_id=sandbox_id, path=path)
            return b"".join([answer.data async for answer in stubs.files.ReadFile(request, timeout=CALL_S)])

        found: bytes | None = await self._try("read", sandbox_id, attempt)
        return found

    async def make_pool(self, pool_id: str, size: int, **spec: Any) -> list[str]:
        """Initializes a pool; returns its members."""
        request = pool_pb.InitializePoolRequest(pool_id=pool_id, size=size, spec=sandbox_pb.SandboxSpec(**spec))
        answer = await self._do("make pool", pool_id, "pools.InitializePool", request)
        return list(answer.sandbox_ids)

    async def run_in_pool(self, pool_id: str, code: str) -> Any | None:
        """Runs a program in a pool; ``None`` if there is no such pool."""
        spec = pb.ExecutionSpec(tool="python_executor", parameters_json=json.dumps({"code": code}))
        request = pool_pb.RunInPoolRequest(pool_id=pool_id, spec=spec)
        return await self._do("run in pool", pool_id, "pools.RunInPool", request)

    async def claim(self, pool_id: str, request_id: str) -> str | None:
        """Takes a member out of a pool; returns its id, or ``None`` if there is no such pool."""
        labels = {"request": request_id}
        request = pool_pb.ClaimRequest(pool_id=pool_id, request_id=request_id, labels=labels)

        def heard(operation: Operation, answer: Any) -> None:
            operation.subject = answer.sandbox.id

        answer = await self._do("create", request_id, "pools.Claim", request, wanted=labels, heard=heard)
        return str(answer.sandbox.id) if answer is not None else None

    async def pools(self) -> list[str]:
        """Lists all pools."""
        answer = await self._do("list", "", "pools.ListPools", pool_pb.ListPoolsRequest())
        return [pool.pool_id for pool in answer.pools]

    async def delete_pool(self, pool_id: str) -> bool:
        """Deletes a pool; whether it was there."""
        request = pool_pb.DeletePoolRequest(pool_id=pool_id)
        return await self._do("delete pool", pool_id, "pools.DeletePool", request) is not None

    # -- executions

    async def run(self, run: Run, spec: pb.ExecutionSpec, stdin: bytes = b"") -> None:
        """Starts a program, or finds it, and follows it to its end. Every byte is acknowledged."""
        self._history.runs.append(run)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await self._follow(run, spec, stdin):
                    await _a_moment()
        except TimeoutError:
            run.faults.append(f"did not end within {PATIENCE_S:g} s")
        except aio.AioRpcError as error:
            run.faults.append(f"{error.code().name}: {error.details()}")

    async def run_once(self, run: Run, spec: pb.ExecutionSpec) -> None:
        """Runs a program with the call that has one answer, which must have all of its output."""
        self._history.runs.append(run)
        answer = await self._do("run", run.sandbox_id, "executions.Run", pb.RunRequest(spec=spec))
        if answer is None:
            run.faults.append("was refused")
            return
        run.got = {1: bytearray(answer.stdout), 2: bytearray(answer.stderr)}
        run.was_started, run.verdict = True, pb.Verdict.Name(answer.finished.verdict).removeprefix("VERDICT_")
        run.message = answer.finished.message

    async def cancel(self, execution_id: str, sandbox_id: str) -> bool:
        """Cancels a program; whether it was there."""
        request = pb.CancelExecutionRequest(execution_id=execution_id, sandbox_id=sandbox_id)
        return await self._do("cancel", sandbox_id, "executions.CancelExecution", request) is not None

    async def _follow(self, run: Run, spec: pb.ExecutionSpec, stdin: bytes) -> bool:
        is_new = not run.was_started
        async with self.stubs() as stubs:
            call = stubs.executions.Execute()
            try:
                await call.write(_opening(run, spec))
                await call.write(_acknowledgement(run))
                if stdin:
                    await call.write(pb.ExecuteRequest(stdin=pb.Stdin(data=stdin, offset=0)))
                    await call.write(pb.ExecuteRequest(end_of_input=pb.EndOfInput()))
                while (answer := await call.read()) is not aio.EOF:
                    event = answer.event
                    if event.HasField("started"):
                        run.was_started = True
                    elif event.HasField("output"):
                        self._take(run, event.output)
                        await call.write(_acknowledgement(run))
                    elif event.HasField("finished"):
                        run.verdict = pb.Verdict.Name(event.finished.verdict).removeprefix("VERDICT_")
                        run.message = event.finished.message
                        run.was_started = run.was_started and not (is_new and run.verdict == "INTERNAL_ERROR")
                        return True
            except aio.AioRpcError as error:
                if not is_cut_off(error):
                    raise
            except asyncio.InvalidStateError:  # the stream ended while this wrote
                pass
            finally:
                call.cancel()
        return False

    @staticmethod
    def _take(run: Run, output: Any) -> None:
        got = run.got[output.channel]
        if output.offset != len(got):
            run.faults.append(f"channel {output.channel} goes on at {output.offset} after {len(got)} bytes")
        got += output.data

    # -- how it asks

    async def _do(
        self,
        kind: str,
        subject: str,
        method: str,
        request: Any,
        *,
        wanted: Any = None,
        heard: Callable[[Operation, Any], None] | None = None,
    ) -> Any | None:
        service, _, name = method.partition(".")

        async def attempt(stubs: Stubs) -> Any:
            return await getattr(getattr(stubs, service), name)(request, timeout=CALL_S)

        return await self._try(kind, subject, attempt, wanted=wanted, heard=heard)

    async def _try(
        self,
        kind: str,
        subject: str,
        attempt: Callable[[Stubs], Awaitable[Any]],
        *,
        wanted: Any = None,
        answer: Any = None,
        heard: Callable[[Operation, Any], None] | None = None,
    ) -> Any | None:
        """Tries until the outcome is certain. ``None``: there is no such thing, or it makes no sense in its state."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with self._history.attempt(self.name, kind, subject, wanted) as operation:
                    operation.answer = answer
                    try:
                        async with self.stubs() as stubs:
                            got = await attempt(stubs)
                    except aio.AioRpcError as error:
                        if not is_cut_off(error):
                            is_over = kind == "delete" and error.code() is grpc.StatusCode.NOT_FOUND
                            operation.outcome = "done" if is_over else "refused"
                            operation.refusal = f"{error.code().name}: {error.details()}"
                            if error.code() in _SENSELESS:
                                return None
                            raise
                        if error.code() is grpc.StatusCode.UNAVAILABLE and was_refused(error):
                            operation.outcome = "refused"
                    else:
                        operation.outcome = "done"
                        if heard is not None:
                            heard(operation, got)
                        return got
                await _a_moment()


async def _a_moment() -> None:
    await asyncio.sleep(AGAIN_S)


_SENSELESS = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED)


def program(
    name: str, sandbox_id: str, *, lines: int = 40, pause_s: float = 0.0, reads: bool = False
) -> tuple[Run, pb.ExecutionSpec]:
    """A program that says that it ran, writes some output, and ends with code 3. It may make that of what it reads."""
    code = [
        "import os, sys, time",
        f"open('runs', 'a').write({name!r} + '\\n')",
        "for line in sys.stdin: print(line.upper(), end='', flush=True)"
        if reads
        else f"for number in range({lines}): print(f'{{number}} OF {name.upper()}', flush=True); time.sleep({pause_s})",
        "os._exit(3)",
    ]
    expected = "".join(f"{number} OF {name.upper()}\n" for number in range(lines)).encode()
    spec = pb.ExecutionSpec(
        sandbox_id=sandbox_id,
        tool="python_executor",
        parameters_json=json.dumps({"code": "\n".join(code), "isolated": True}),
        execution_id=name,
        timeout_s=60,
        stdin=reads,
    )
    return Run(name, sandbox_id, {1: expected, 2: b""}, ("EXITED",)), spec


def blob(name: str, size: int) -> bytes:
    """Bytes that a name decides."""
    return hashlib.shake_256(name.encode()).digest(size)


def is_cut_off(error: aio.AioRpcError) -> bool:
    """Whether trying again is what the contract says. The client's own library has other words for a broken stream."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return True
    details = error.details() or ""
    return (error.code(), details) in (
        (grpc.StatusCode.INTERNAL, "Internal error from Core"),
        (grpc.StatusCode.UNKNOWN, "Stream removed"),
    )


def was_refused(error: aio.AioRpcError) -> bool:
    """Whether the daemon itself said that it is not available: then it has done nothing."""
    return any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())


def _opening(run: Run, spec: pb.ExecutionSpec) -> pb.ExecuteRequest:
    if not run.was_started:
        return pb.ExecuteRequest(start=spec)
    offsets = [pb.ChannelOffset(channel=channel, offset=len(got)) for channel, got in run.got.items()]
    attach = pb.AttachRequest(execution_id=run.execution_id, sandbox_id=run.sandbox_id, offsets=offsets)
    return pb.ExecuteRequest(attach=attach)


def _acknowledgement(run: Run) -> pb.ExecuteRequest:
    offsets = [pb.ChannelOffset(channel=channel, offset=len(got)) for channel, got in run.got.items()]
    return pb.ExecuteRequest(acknowledge=pb.Acknowledge(offsets=offsets))
