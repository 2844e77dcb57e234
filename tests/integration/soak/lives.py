"""The lives of sandboxes in a soak: what each is used for, and that every answer is the right one."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from grpc import aio
from ms_enclave.sandbox.boxes import Sandbox
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import ExecutionOptions, Finished, Output, SandboxType
from ms_enclave.v1 import execution_service_pb2 as pb

from tests.integration.failures.ground import Stubs

MEMORY: Final = "96m"
ABANDONED_TTL_S: Final = 3
_EAT_MEMORY: Final = "data = []\nwhile True: data.append(bytearray(4_000_000))"


@dataclass
class Tally:
    """What came of all lives."""

    lives: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """How long each step took, by its name."""
    errors: list[str] = field(default_factory=list)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Times one step."""
        began = time.perf_counter()
        yield
        self.seconds[step].append(time.perf_counter() - began)


class Lives:
    """Lives sandboxes at one daemon, through the SDK."""

    def __init__(self, manager: LocalSandboxManager, address: str, tally: Tally) -> None:
        self._manager, self._address, self._tally = manager, address, tally
        self._extras = (
            self._is_paused,
            self._is_killed,
            self._times_out,
            self._runs_out_of_memory,
            self._loses_its_client,
            self._runs_detached,
            self._is_stopped,
        )

    async def live(self, number: int) -> None:
        """Makes a sandbox, uses it and deletes it; of eight one is left to its time to live."""
        kind = number % (len(self._extras) + 1)
        if kind == len(self._extras):
            await self._is_abandoned()
            return
        async with self._sandbox() as box:
            await self._use(box, number)
            extra = self._extras[kind]
            name = extra.__name__.strip("_").replace("_", " ")
            with self._tally.timed(name):
                await extra(box)
            self._tally.lives[name] += 1

    @asynccontextmanager
    async def _sandbox(self, **settings: Any) -> AsyncIterator[Sandbox]:
        with self._tally.timed("create"):
            sandbox_id = await self._manager.create_sandbox(SandboxType.DOCKER, {"memory_limit": MEMORY, **settings})
        box = await self._manager.get_sandbox(sandbox_id)
        assert box is not None
        try:
            yield box
        finally:
            with self._tally.timed("delete"):
                assert await self._manager.delete_sandbox(sandbox_id)

    async def _use(self, box: Sandbox, number: int) -> None:
        with self._tally.timed("python"):
            await self._says(box, f"{number}\n", code=f"print({number})")
        with self._tally.timed("shell"):
            result = await box.execute_tool("shell_executor", {"command": f"echo {number} >&2; echo {number}"})
            assert (result.output or "").split() == [str(number)], result
        with self._tally.timed("files"):
            data = f"{number}".encode() * 20_000
            await box.files.write("data", data)
            assert await box.files.read("data") == data
        with self._tally.timed("context"):
            async with await box.contexts.open("other") as context:
                await context.execute(f"x = {number}")
                result = await context.execute("print(x)")
                assert result.output == f"{number}\n", result
        with self._tally.timed("stream"):
            events = [event async for event in box.stream("python_executor", code="print('x' * 100_000)")]
            got = b"".join(event.data for event in events if isinstance(event, Output))
            assert len(got) == 100_001, len(got)
            assert isinstance(events[-1], Finished)

    @staticmethod
    async def _says(box: Sandbox, words: str, **parameters: Any) -> None:
        result = await box.execute_tool("python_executor", parameters)
        assert result.output == words, result

    @staticmethod
    def _verdict(metadata: Mapping[str, Any], *expected: str) -> None:
        assert metadata["verdict"] in expected, metadata

    # -- what some go through

    async def _is_paused(self, box: Sandbox) -> None:
        await box.pause()
        await box.resume()
        await self._says(box, "awake\n", code="print('awake')")

    async def _is_killed(self, box: Sandbox) -> None:
        async with await box.start_execution("shell_executor", command="sleep 600") as execution:
            await execution.signal(9)
            finished = await execution.wait(60)
        assert finished is not None
        assert finished.verdict == "SIGNALED", finished

    async def _times_out(self, box: Sandbox) -> None:
        result = await box.execute_tool("python_executor", {"code": "while True: pass", "timeout": 0.3})
        self._verdict(result.metadata, "TIMEOUT")

    async def _runs_out_of_memory(self, box: Sandbox) -> None:
        result = await box.execute_tool("python_executor", {"code": _EAT_MEMORY, "timeout": 30, "isolated": True})
        self._verdict(result.metadata, "OUT_OF_MEMORY", "EXCEPTION")

    async def _loses_its_client(self, box: Sandbox) -> None:
        """It never says goodbye: its connection breaks while output comes."""
        channel = aio.insecure_channel(self._address)
        call = Stubs(channel).executions.Execute()
        parameters = '{"command": "while true; do echo again; done"}'
        spec = pb.ExecutionSpec(sandbox_id=box.id, tool="shell_executor", parameters_json=parameters)
        await call.write(pb.ExecuteRequest(start=spec))
        for _ in range(3):
            assert await call.read() is not aio.EOF
        await channel.close()
        await self._says(box, "alone\n", code="print('alone')")

    async def _runs_detached(self, box: Sandbox) -> None:
        options = ExecutionOptions(detach=True)
        execution = await box.start_execution("shell_executor", command="sleep 600", options=options)
        await execution.detach()
        assert [info.running for info in await box.list_executions(running=True)] == [True]

    async def _is_stopped(self, box: Sandbox) -> None:
        """With a stream open, which ends with it."""
        async with aclosing(box.stream("shell_executor", command="echo up; sleep 600")) as events:
            async for event in events:
                if isinstance(event, Output):
                    await box.stop()
                if isinstance(event, Finished):
                    assert event.verdict == "SANDBOX_LOST", event

    async def _is_abandoned(self) -> None:
        """Nobody deletes it."""
        with self._tally.timed("create"):
            limits = {"ttl": ABANDONED_TTL_S}
            settings = {"memory_limit": MEMORY, "resource_limits": limits}
            await self._manager.create_sandbox(SandboxType.DOCKER, settings)
        self._tally.lives["is abandoned"] += 1
