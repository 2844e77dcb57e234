"""Runs the program of an attack in a sandbox and reads everything that comes out of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import grpc.aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb

from enclaved.doctor.attacks.base import Program, Run, told_in
from enclaved.doctor.attacks.prelude import with_prelude
from enclaved.doctor.connection import Stubs

STDOUT_KEPT_BYTES: Final = 1024 * 1024
STDERR_KEPT_BYTES: Final = 64 * 1024
EXTRA_S: Final = 40.0
"""How long a call may take beyond the timeout of its program."""
_INPUT_BYTES: Final = 256 * 1024

Ready = Callable[[], Awaitable[None]]


class Gathered:
    """What came out, up to now."""

    def __init__(self, nonce: str) -> None:
        self._nonce = nonce
        self._digest = hashlib.sha256()
        self._size = 0
        self._out, self._errors = bytearray(), bytearray()
        self.finished: execution_pb.Finished | None = None
        self.execution_id = ""
        self.is_ready = asyncio.Event()
        """Set when the program told ``ready``, and at its end."""

    def take(self, event: execution_pb.ExecutionEvent) -> None:
        """Takes one event."""
        if event.HasField("started"):
            self.execution_id = event.started.execution_id
        elif event.HasField("output") and event.output.channel == execution_pb.CHANNEL_STDERR:
            self._errors += event.output.data[: STDERR_KEPT_BYTES - len(self._errors)]
        elif event.HasField("output"):
            data = event.output.data
            self._digest.update(data)
            self._size += len(data)
            self._out += data[: STDOUT_KEPT_BYTES - len(self._out)]
            if self._size < 65536 and told_in(bytes(self._out), self._nonce).get("ready"):
                self.is_ready.set()
        elif event.HasField("finished"):
            self.finished = event.finished
            self.is_ready.set()

    def run(self, error: str = "") -> Run:
        """Returns the whole."""
        end = self.finished
        return Run(
            verdict="" if end is None else execution_pb.Verdict.Name(end.verdict).removeprefix("VERDICT_"),
            exit_code=end.exit_code if end is not None and end.HasField("exit_code") else None,
            signal=end.signal if end is not None and end.HasField("signal") else None,
            attested=end is not None and end.attested,
            stdout=bytes(self._out),
            stderr=bytes(self._errors),
            stdout_bytes=self._size,
            stdout_sha256=self._digest.hexdigest(),
            message="" if end is None else end.message[:300],
            error=error,
        )


def spec_of(sandbox_id: str, program: Program, facts: Mapping[str, Any]) -> execution_pb.ExecutionSpec:
    """Returns what to ask for, to run a program."""
    text = with_prelude(program, facts)
    parameters = {"command": text} if program.is_shell else {"code": text, "isolated": program.isolated}
    return execution_pb.ExecutionSpec(
        sandbox_id=sandbox_id,
        tool="shell_executor" if program.is_shell else "python_executor",
        parameters_json=json.dumps(parameters),
        timeout_s=program.timeout_s,
        output_limit_bytes=program.output_limit_bytes,
        stdin=program.stdin is not None,
        detach_grace_s=1.0,
    )


async def execute(
    stubs: Stubs, sandbox_id: str, program: Program, facts: Mapping[str, Any], on_ready: Ready | None = None
) -> Run:
    """Runs a program to its end. ``on_ready`` is awaited when it told that it is ready; then its input ends.

    A call that fails is in ``Run.error``; so is one that takes 40 s longer than the program's timeout.
    """
    gathered = Gathered(str(facts["nonce"]))
    try:
        async with asyncio.timeout(program.timeout_s + EXTRA_S):
            call = stubs.executions.Execute()
            try:
                await call.write(execution_pb.ExecuteRequest(start=spec_of(sandbox_id, program, facts)))
                talking = asyncio.create_task(_talk(call, program, gathered, on_ready))
                try:
                    while (answer := await call.read()) is not grpc.aio.EOF:
                        assert isinstance(answer, execution_pb.ExecuteResponse)
                        gathered.take(answer.event)
                    code = await call.code()
                    if code is not grpc.StatusCode.OK:
                        return gathered.run(f"{code.name}: {str(await call.details())[:300]}")
                finally:
                    gathered.is_ready.set()
                    talking.cancel()
                    with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                        await talking
            finally:
                call.cancel()
    except grpc.aio.AioRpcError as error:
        return gathered.run(f"{error.code().name}: {str(error.details())[:300]}")
    except TimeoutError:
        return gathered.run("no end within the time that it may take")
    return gathered.run()


async def _talk(call: Any, program: Program, gathered: Gathered, on_ready: Ready | None) -> None:
    """Sends what the program is to be sent, and ends or cancels it in the way that it asks for."""
    if program.look_when_ready or program.cancel_when_ready:
        await gathered.is_ready.wait()
        if on_ready is not None and gathered.finished is None:
            await on_ready()
    if program.cancel_when_ready:
        await call.write(execution_pb.ExecuteRequest(cancel=execution_pb.Cancel()))
        return
    data = program.stdin or b""
    for start in range(0, len(data), _INPUT_BYTES):
        piece = execution_pb.Stdin(data=data[start : start + _INPUT_BYTES])
        await call.write(execution_pb.ExecuteRequest(stdin=piece))
    if program.stdin is not None and program.ends_input:
        await call.write(execution_pb.ExecuteRequest(end_of_input=execution_pb.EndOfInput()))
