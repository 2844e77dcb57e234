"""A daemon is killed while programs of the SDK's users run: what they see is a pause, and every byte once."""

from __future__ import annotations

import asyncio
import hashlib
import signal

import pytest
from ms_enclave import errors
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave.sandbox.boxes import DockerSandbox
from ms_enclave.sandbox.model import DockerSandboxConfig, ExecutionOptions, Finished, Output, Verdict

from tests.integration.failures.ground import DaemonProcess, Ground

PATIENCE_S = 120.0
CONFIG = DockerSandboxConfig(memory_limit="128m")


async def sandbox_at(daemon: DaemonProcess) -> DockerSandbox:
    sandbox = DockerSandbox(CONFIG)
    sandbox.use(GrpcTransport(daemon.address), {})
    await sandbox.start()
    return sandbox


async def killed_and_started(ground: Ground, daemon: DaemonProcess) -> DaemonProcess:
    daemon.send(signal.SIGKILL)
    await daemon.ended()
    return await ground.daemon()


async def test_a_stream_goes_on_with_every_byte_of_output(ground: Ground) -> None:
    """40 MB at full speed, and a daemon that dies three times in between."""
    daemon = await ground.daemon()
    sandbox = await sandbox_at(daemon)
    lines, kills = 400_000, [50, 150, 300]
    command = f"seq -f 'line %099.0f' 1 {lines}"
    written = bytearray()
    pieces = 0
    last = None
    async with asyncio.timeout(PATIENCE_S):
        async for event in sandbox.stream("bash", command=command, timeout=PATIENCE_S):
            last = event
            if isinstance(event, Output):
                assert event.offset == len(written)
                written += event.data
                pieces += 1
                if kills and pieces >= kills[0]:
                    kills.pop(0)
                    daemon = await killed_and_started(ground, daemon)
    assert kills == []
    assert isinstance(last, Finished)
    assert (last.verdict, last.exit_code) == (Verdict.EXITED, 0), last  # one that is late has not written everything
    expected = b"".join(b"line %099d\n" % number for number in range(1, lines + 1))
    assert hashlib.sha256(written).hexdigest() == hashlib.sha256(expected).hexdigest()
    await sandbox.cleanup()


async def test_input_arrives_once(ground: Ground) -> None:
    daemon = await ground.daemon()
    sandbox = await sandbox_at(daemon)
    execution = await sandbox.start_execution("bash", command="sha256sum", options=ExecutionOptions(stdin=True))
    digest = hashlib.sha256()
    async with asyncio.timeout(PATIENCE_S):
        for number in range(200):
            data = bytes([number]) * 20_000
            digest.update(data)
            await execution.write(data)
            if number in (60, 120):
                daemon = await killed_and_started(ground, daemon)
        execution.end_input()
        written = [event.data async for event in execution if isinstance(event, Output)]
    assert b"".join(written).decode().split()[0] == digest.hexdigest()
    await sandbox.cleanup()


async def test_a_call_that_waits_for_its_result_gets_it_and_runs_once(ground: Ground) -> None:
    daemon = await ground.daemon()
    sandbox = await sandbox_at(daemon)
    command = "echo x >> ran; while [ ! -e go ]; do sleep 0.05; done; cat ran"
    call = asyncio.create_task(sandbox.execute_tool("bash", {"command": command}))
    async with asyncio.timeout(PATIENCE_S):
        await sandbox.execute_command("while [ ! -e ran ]; do sleep 0.05; done")
        daemon = await killed_and_started(ground, daemon)
        await sandbox.execute_command("touch go")
        assert (await call).output == "x\n"
    await sandbox.cleanup()


async def test_patience_has_an_end_and_the_execution_is_taken_up_by_its_id(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MS_ENCLAVE_RECONNECT_S", "0.5")
    daemon = await ground.daemon()
    sandbox = await sandbox_at(daemon)
    execution = await sandbox.start_execution("bash", command="echo begun; read -t 60; echo on; exit 4")
    daemon.send(signal.SIGKILL)
    await daemon.ended()
    with pytest.raises(errors.ExecutionUnreachable, match="get_execution") as caught:
        async with asyncio.timeout(PATIENCE_S):
            await execution.wait()
    daemon = await ground.daemon()
    found = await sandbox.get_execution(caught.value.metadata["execution_id"])
    async with asyncio.timeout(PATIENCE_S):
        events = [event async for event in found]
    assert b"".join(event.data for event in events if isinstance(event, Output)) == b"begun\non\n"
    assert isinstance(events[-1], Finished)
    assert events[-1].exit_code == 4
    await sandbox.cleanup()


async def test_streams_whose_programs_end_without_a_daemon_lose_nothing(ground: Ground) -> None:
    """More output at once than the journals of their sandbox take."""
    daemon = await ground.daemon()
    sandbox = await sandbox_at(daemon)
    begun = asyncio.Event()

    async def stream() -> tuple[int, Verdict]:
        size = 0
        async for event in sandbox.stream("bash", command="echo; sleep 0.5; head -c 3500000 /dev/zero"):
            if isinstance(event, Output):
                size += len(event.data)
                begun.set()
            elif isinstance(event, Finished):
                return size, event.verdict
        raise AssertionError("it did not end")

    streams = [asyncio.create_task(stream()) for _ in range(8)]
    async with asyncio.timeout(PATIENCE_S):
        await begun.wait()
        await killed_and_started(ground, daemon)
        for each in streams:
            assert await each == (3_500_001, Verdict.EXITED)
    await sandbox.cleanup()


async def test_many_large_results_at_once_are_all_complete(ground: Ground) -> None:
    """One answer holds less than each; the SDK goes on where it stopped, though all have ended by then."""
    sandbox = await sandbox_at(await ground.daemon())

    async def result() -> int:
        command = "head -c 3000000 /dev/zero | tr '\\0' x"
        found = await sandbox.execute_tool("shell_executor", {"command": command})
        assert found.error is None
        assert isinstance(found.output, str)
        return len(found.output)

    async with asyncio.timeout(PATIENCE_S):
        assert await asyncio.gather(*(result() for _ in range(20))) == [3_000_000] * 20
    await sandbox.cleanup()
