"""Much output, and whoever reads it or does not: the daemon's memory stays as it is, and other programs go on."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from tests.cases import cases
from tests.integration.failures.ground import DaemonProcess, Ground, Stubs

MIB = 1024 * 1024
ALLOWED_BYTES = 16 * MIB
"""How much more memory the daemon may take than before."""
LOOK_EVERY_S = 0.02
SLOW_BYTES_PER_S = 1_000_000
SANDBOX = "loud"
LINE = b"0123456789abcdef\n"
TEXT = LINE * (2 * MIB // len(LINE))


class Memory:
    """The resident memory of a process while it is watched."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.most_bytes = self.before_bytes = self.now_bytes()

    def now_bytes(self) -> int:
        found = re.search(r"VmRSS:\s+(\d+) kB", self._status.read_text())
        assert found is not None
        return int(found[1]) * 1024

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Looks at it again and again for as long as the block runs."""

        async def look() -> None:
            while True:
                self.most_bytes = max(self.most_bytes, self.now_bytes())
                await asyncio.sleep(LOOK_EVERY_S)

        watching = asyncio.create_task(look())
        try:
            yield
        finally:
            watching.cancel()


class Client:
    """Calls of one client."""

    def __init__(self, stubs: Stubs) -> None:
        self.stubs = stubs

    async def make_sandbox(self) -> None:
        spec = sandbox_pb.SandboxSpec(memory_limit_bytes=256 * MIB, cpu_limit=2.0, pids_limit=128)
        request = sandbox_pb.CreateSandboxRequest(sandbox_id=SANDBOX, spec=spec)
        await self.stubs.sandboxes.CreateSandbox(request)

    def shell(self, command: str, **more: Any) -> pb.ExecutionSpec:
        parameters = json.dumps({"command": command})
        return pb.ExecutionSpec(
            sandbox_id=SANDBOX, tool="shell_executor", parameters_json=parameters, timeout_s=0, **more
        )

    def loud(self, size: int, **more: Any) -> pb.ExecutionSpec:
        """A program that writes so many bytes."""
        return self.shell(f"yes {LINE.decode().strip()} | head -c {size}", **more)

    async def unread(self, size: int) -> pb.Finished:
        """Runs a program that nobody reads, to its end."""
        spec = self.loud(size, detach=True)
        answer = await self.stubs.executions.Run(pb.RunRequest(spec=spec))
        assert answer.running
        request = pb.WaitExecutionRequest(execution_id=answer.execution_id, wait_s=3600)
        ended = await self.stubs.executions.WaitExecution(request)
        return ended.execution.finished

    async def read_slowly(self, size: int) -> tuple[pb.Finished, int, int]:
        """Reads 1 MB/s of a program that does not wait; returns its end, and what was read and what was missed."""
        call = self.stubs.executions.Execute()
        await call.write(pb.ExecuteRequest(start=self.loud(size, retention=pb.RETENTION_KEEP_LAST)))
        read = missed = position = 0
        while (answer := await call.read()) is not aio.EOF:
            event = answer.event
            if event.HasField("output"):
                assert event.output.offset == position
                position += len(event.output.data)
                read += len(event.output.data)
                await asyncio.sleep(len(event.output.data) / SLOW_BYTES_PER_S)
            elif event.notice.kind == pb.Notice.KIND_GAP:
                assert event.notice.offset == position
                position += event.notice.length_bytes
                missed += event.notice.length_bytes
            elif event.HasField("finished"):
                return event.finished, read, missed
        raise AssertionError("an execution without an end")

    async def read_fast(self, size: int) -> tuple[pb.Finished, int]:
        """Reads everything as fast as it comes; returns the end, and how much that was."""
        call = self.stubs.executions.Execute()
        await call.write(pb.ExecuteRequest(start=self.loud(size, retention=pb.RETENTION_UNTIL_ACK)))
        read = 0
        while (answer := await call.read()) is not aio.EOF:
            event = answer.event
            if event.HasField("output"):
                data, start = event.output.data, event.output.offset % len(LINE)
                assert event.output.offset == read
                assert data == TEXT[start : start + len(data)]
                read += len(data)
            elif event.HasField("finished"):
                return event.finished, read
        raise AssertionError("an execution without an end")

    async def small_call(self) -> None:
        answer = await self.stubs.executions.Run(pb.RunRequest(spec=self.shell("echo here")))
        assert (answer.stdout, answer.finished.exit_code) == (b"here\n", 0)


@pytest.fixture
async def daemon(default_image: str) -> AsyncIterator[DaemonProcess]:
    ground = Ground()
    try:
        started = await ground.daemon()
        yield started
        started.check_log()
    finally:
        ground.clear()


@pytest.mark.timeout(3000)
async def test_output_takes_no_memory_of_the_daemon_however_much_it_is_and_whoever_reads_it(
    daemon: DaemonProcess,
) -> None:
    size = cases(512 * MIB, 10 * 1024 * MIB)
    async with aio.insecure_channel(daemon.address) as channel, asyncio.TaskGroup() as group:
        client = Client(Stubs(channel))
        await client.make_sandbox()
        await asyncio.gather(client.unread(8 * MIB), client.read_slowly(4 * MIB), client.read_fast(8 * MIB))
        memory = Memory(daemon.process.pid)
        async with memory.watched():
            loud = [
                group.create_task(client.unread(size)),
                group.create_task(client.read_slowly(size)),
                group.create_task(client.read_fast(size)),
            ]
            small_calls = 0
            while not any(task.done() for task in loud):
                await client.small_call()
                small_calls += 1
            unread = await loud[0]
            slow, read, missed = await loud[1]
            fast, everything = await loud[2]
    for finished in (unread, slow, fast):
        assert (finished.verdict, finished.exit_code) == (pb.VERDICT_EXITED, 0)
        assert [total.offset for total in finished.bytes_total][:1] == [size]
    assert everything == size
    assert read + missed == size
    assert small_calls > 10, "other programs in the sandbox were held up"
    assert missed > 0
    growth = memory.most_bytes - memory.before_bytes
    assert growth <= ALLOWED_BYTES, f"{growth / MIB:.1f} MiB more than the {memory.before_bytes / MIB:.0f} before"
