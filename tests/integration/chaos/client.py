"""A client that follows executions to their end, whatever happens to the daemon, and counts what does not fit."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as pb

from tests.integration.chaos.programs import Program
from tests.integration.failures.ground import Stubs

PATIENCE_S = 120.0
AGAIN_S = 0.05
ACKNOWLEDGE_BYTES = 64 * 1024
STDIN_CHUNK_BYTES = 1000


@dataclass
class Tally:
    """What came of it all."""

    kills: int = 0
    executions: Counter[str] = field(default_factory=Counter)
    attachments: int = 0
    output_bytes: int = 0
    lost_bytes: int = 0
    doubled_bytes: int = 0
    different: int = 0
    """Executions whose output is not what their program wrote."""
    wrong_verdicts: int = 0
    ran_twice: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    """What other clients did, by kind."""
    broken_promises: list[str] = field(default_factory=list)
    """What does not fit together with what they were told."""
    left_containers: int = 0
    left_directories: int = 0
    described: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How much is not as it should be."""
        numbers = (self.lost_bytes, self.doubled_bytes, self.different, self.wrong_verdicts, self.ran_twice)
        return (
            sum(numbers)
            + self.left_containers
            + self.left_directories
            + len(self.described)
            + len(self.broken_promises)
        )


class Follower:
    """One execution as its client sees it."""

    def __init__(self, address: str, sandbox_id: str, program: Program, tally: Tally) -> None:
        self._address, self._sandbox_id, self._program, self._tally = address, sandbox_id, program, tally
        self._got: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self._known = False
        self._unacknowledged = 0

    async def follow(self) -> None:
        """Starts the program and follows it to its end."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                finished = await self._attempt()
                while finished is None:
                    await asyncio.sleep(AGAIN_S)
                    finished = await self._attempt()
        except TimeoutError:
            self._fault(f"did not end within {PATIENCE_S:g} s")
            return
        except aio.AioRpcError as error:
            self._fault(f"{error.code().name}: {error.details()}")
            return
        self._check(finished)

    async def _attempt(self) -> pb.Finished | None:
        """One stream; ``None`` if it broke off and another should be tried."""
        async with aio.insecure_channel(self._address) as channel:
            call = Stubs(channel).executions.Execute()
            feeding: asyncio.Task[None] | None = None
            try:
                await call.write(self._opening())
                await self._acknowledge(call)  # from now on only this client says what may be released
                feeding = asyncio.create_task(self._feed(call))
                while (answer := await call.read()) is not aio.EOF:
                    event = answer.event
                    if event.HasField("started"):
                        self._tally.attachments += self._known
                        self._known = True
                    elif event.HasField("output"):
                        await self._take(event.output, call)
                    elif event.HasField("finished"):
                        found: pb.Finished = event.finished
                        return found
            except aio.AioRpcError as error:
                if not _is_worth_another(error):
                    raise
            except asyncio.InvalidStateError:  # the stream ended while this wrote
                pass
            finally:
                if feeding is not None:
                    feeding.cancel()
                    await asyncio.wait([feeding])
                call.cancel()
        return None

    def _opening(self) -> pb.ExecuteRequest:
        if self._known:
            offsets = [pb.ChannelOffset(channel=number, offset=len(got)) for number, got in self._got.items()]
            attach = pb.AttachRequest(execution_id=self._program.name, sandbox_id=self._sandbox_id, offsets=offsets)
            return pb.ExecuteRequest(attach=attach)
        parameters = {"code": self._program.code, "isolated": True}
        spec = pb.ExecutionSpec(
            sandbox_id=self._sandbox_id,
            tool="python_executor",
            parameters_json=json.dumps(parameters),
            execution_id=self._program.name,
            timeout_s=self._program.timeout_s,
            stdin=bool(self._program.stdin),
        )
        return pb.ExecuteRequest(start=spec)

    async def _feed(self, call: Any) -> None:
        """Sends the whole input, again and again: what was taken before is not delivered twice."""
        data = self._program.stdin
        if not data:
            return
        try:
            for start in range(0, len(data), STDIN_CHUNK_BYTES):
                piece = data[start : start + STDIN_CHUNK_BYTES]
                await call.write(pb.ExecuteRequest(stdin=pb.Stdin(data=piece, offset=start)))
            await call.write(pb.ExecuteRequest(end_of_input=pb.EndOfInput()))
        except (aio.AioRpcError, asyncio.InvalidStateError):
            return  # whoever reads hears why

    async def _take(self, output: Any, call: Any) -> None:
        got = self._got[output.channel]
        difference = output.offset - len(got)
        self._tally.lost_bytes += max(0, difference)
        self._tally.doubled_bytes += max(0, -difference)
        got += output.data
        self._tally.output_bytes += len(output.data)
        self._unacknowledged += len(output.data)
        if self._unacknowledged >= ACKNOWLEDGE_BYTES:
            self._unacknowledged = 0
            await self._acknowledge(call)

    async def _acknowledge(self, call: Any) -> None:
        offsets = [pb.ChannelOffset(channel=number, offset=len(got)) for number, got in self._got.items()]
        await call.write(pb.ExecuteRequest(acknowledge=pb.Acknowledge(offsets=offsets)))

    def _check(self, finished: pb.Finished) -> None:
        program = self._program
        self._tally.executions[program.kind] += 1
        for number, expected in program.output.items():
            got = bytes(self._got[number])
            if got != expected:
                self._tally.different += 1
                self._fault(f"channel {number} has {len(got)} bytes, its program wrote {len(expected)}")
        verdict = pb.Verdict.Name(finished.verdict).removeprefix("VERDICT_")
        code = finished.exit_code if finished.HasField("exit_code") else None
        signal = finished.signal if finished.HasField("signal") else None
        right = verdict == program.verdict
        if program.verdict in ("EXITED", "SIGNALED"):
            right = right and (code, signal) == (program.exit_code, program.signal)
        if not right:
            self._tally.wrong_verdicts += 1
            self._fault(f"was told {verdict} {code} {signal} ({finished.message})")

    def _fault(self, text: str) -> None:
        self._tally.described.append(f"{self._program.name} ({self._program.kind}): {text}")


def _is_worth_another(error: aio.AioRpcError) -> bool:
    """Whether a stream broke off. The client's own library says INTERNAL of one that breaks off while it writes."""
    broken = error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"
    return broken or error.code() is grpc.StatusCode.UNAVAILABLE
