"""A daemon is killed with SIGKILL, and the next one on its state directory goes on where it was."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiodocker
import grpc
import pytest
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.core.state import DATABASE_NAME
from tests.integration.chaos.campaign import campaign
from tests.integration.failures.ground import PATIENCE_S, DaemonProcess, Ground, Stubs, until
from tests.service.daemons import python

MIB = 1024 * 1024
LINES = 4000
SLOW = f"""
import time
for number in range({LINES}):
    print(f"{{number:06}} {{'x' * 90}}", flush=True)
    if number % 200 == 0:
        time.sleep(0.05)
"""
AWAITED = "import os, time\nprint('begun', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
"""A program that waits until somebody makes a file."""


@asynccontextmanager
async def at(daemon: DaemonProcess) -> AsyncIterator[Stubs]:
    """The services of a daemon."""
    async with aio.insecure_channel(daemon.address) as channel:
        yield Stubs(channel)


async def killed(daemon: DaemonProcess) -> None:
    """Kills a daemon, which had made no mistake until then."""
    daemon.send(signal.SIGKILL)
    await daemon.ended()
    daemon.check_log()


async def stopped(daemon: DaemonProcess, ground: Ground) -> None:
    """Stops a daemon, after which nothing is left."""
    daemon.send(signal.SIGTERM)
    assert await daemon.ended() == 0
    daemon.check_log()
    assert ground.containers() == []
    assert list((ground.folder / "e" / "s").iterdir()) == []


async def create(stubs: Stubs, sandbox_id: str = "box", **spec: Any) -> None:
    """Creates a sandbox."""
    wanted = sandbox_pb.SandboxSpec(memory_limit_bytes=96 * MIB, **spec)
    await stubs.sandboxes.CreateSandbox(sandbox_pb.CreateSandboxRequest(sandbox_id=sandbox_id, spec=wanted))


async def start(stubs: Stubs, spec: pb.ExecutionSpec, until_bytes: int = 0) -> bytes:
    """Starts an execution and leaves when it wrote so much; returns what came."""
    call = stubs.executions.Execute()
    await call.write(pb.ExecuteRequest(start=spec))
    got = bytearray()
    assert (await call.read()).event.HasField("started")
    while len(got) < until_bytes:
        got += (await call.read()).event.output.data
    call.cancel()
    return bytes(got)


async def follow(stubs: Stubs, execution_id: str, offset: int = 0) -> tuple[bytes, pb.Finished]:
    """Follows an execution from an offset to its end."""
    request = pb.AttachRequest(execution_id=execution_id, offsets=[pb.ChannelOffset(channel=1, offset=offset)])
    got = bytearray()
    async for answer in stubs.executions.Attach(request, timeout=PATIENCE_S):
        output = answer.event.output
        if output.channel == pb.CHANNEL_STDOUT:
            assert output.offset == offset + len(got)
            got += output.data
        elif answer.event.HasField("finished"):
            return bytes(got), answer.event.finished
    raise AssertionError("it did not end")


async def test_output_across_a_kill_is_that_of_an_undisturbed_run(ground: Ground) -> None:
    first = await ground.daemon()
    async with at(first) as stubs:
        await create(stubs)
        await start(stubs, python(SLOW, execution_id="undisturbed"))
        whole, _ = await follow(stubs, "undisturbed")
        head = await start(stubs, python(SLOW, execution_id="run"), 50_000)
        before = ground.containers()
        await killed(first)
    second = await ground.daemon()
    async with at(second) as stubs:
        tail, finished = await follow(stubs, "run", len(head))
        assert (finished.verdict, finished.exit_code) == (pb.VERDICT_EXITED, 0)
        assert hashlib.sha256(head + tail).hexdigest() == hashlib.sha256(whole).hexdigest()
        assert len(whole) > len(head) + 100_000
        _, known = await follow(stubs, "undisturbed", len(whole))
        assert known.verdict == pb.VERDICT_EXITED
    assert ground.containers() == before
    await stopped(second, ground)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("os._exit(137)", ("EXITED", 137, None)),
        ("os.kill(os.getpid(), 15)", ("SIGNALED", None, 15)),
        ("held = [bytearray(1 << 20) for _ in range(500)]", ("OUT_OF_MEMORY", None, 9)),
        ("time.sleep(600)", ("TIMEOUT", None, None)),
        ("raise KeyError('gone')", ("EXCEPTION", None, None)),
    ],
)
async def test_what_ended_without_a_daemon_has_its_true_verdict(
    ground: Ground, engine: aiodocker.Docker, code: str, expected: tuple[str, int | None, int | None]
) -> None:
    first = await ground.daemon()
    spec = python("", execution_id="run", timeout_s=5)
    spec.parameters_json = json.dumps({"code": AWAITED + code, "isolated": True})
    async with at(first) as stubs:
        await create(stubs)
        head = await start(stubs, spec, 6)
        await killed(first)
    (container_id,) = ground.containers()
    container = await engine.containers.get(container_id)
    await _do(container, "touch /sandbox/go")
    second = await ground.daemon()
    async with at(second) as stubs:
        _, finished = await follow(stubs, "run", len(head))
        code_and_signal = [
            getattr(finished, name) if finished.HasField(name) else None for name in ("exit_code", "signal")
        ]
        verdict = pb.Verdict.Name(finished.verdict).removeprefix("VERDICT_")
        if expected[0] in ("EXCEPTION", "TIMEOUT"):
            code_and_signal = [None, None]
        assert (verdict, *code_and_signal) == expected
    await stopped(second, ground)


async def test_output_that_nobody_has_read_is_there_after_a_kill_however_much_it_is(
    ground: Ground, engine: aiodocker.Docker
) -> None:
    """More than the journals of a sandbox take, of programs that end without a daemon, and one that ended before."""
    names = [f"big-{number}" for number in range(8)]
    first = await ground.daemon()
    async with at(first) as stubs:
        await create(stubs)
        for name in ("small", *names):
            rest = "print('x' * 3_000_000)" if name in names else "print('precious')"
            spec = python("", execution_id=name, detach=True, retention=pb.RETENTION_UNTIL_ACK)
            spec.parameters_json = json.dumps({"code": (AWAITED if name in names else "") + rest, "isolated": True})
            await stubs.executions.Run(pb.RunRequest(spec=spec))
        await stubs.executions.WaitExecution(pb.WaitExecutionRequest(execution_id="small"))
        await killed(first)
    (container_id,) = ground.containers()
    await _do(await engine.containers.get(container_id), "touch /sandbox/go")
    second = await ground.daemon()
    async with at(second) as stubs:
        for name in ("small", *names):
            output, finished = await follow(stubs, name)
            assert (finished.verdict, finished.exit_code) == (pb.VERDICT_EXITED, 0), name
            assert len(output) == (len("begun\n") + 3_000_001 if name in names else len("precious\n")), name
    await stopped(second, ground)


async def _do(container: Any, command: str) -> str:
    """Runs a shell command in a container behind the daemon's back, as the user of its programs."""
    uid = (await container.show())["Config"]["Labels"]["enclaved.uid"]
    execution = await container.exec(["sh", "-c", command], user=f"{uid}:{uid}")
    async with execution.start(detach=False) as stream:
        said = bytearray()
        while (message := await stream.read_out()) is not None:
            said += message.data
    return said.decode()


async def test_input_goes_on_at_its_offset_after_a_kill(ground: Ground) -> None:
    code = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"
    first = await ground.daemon()
    async with at(first) as stubs:
        await create(stubs)
        call = stubs.executions.Execute()
        await call.write(pb.ExecuteRequest(start=python(code, execution_id="run", stdin=True)))
        await call.write(pb.ExecuteRequest(stdin=pb.Stdin(data=b"one\ntwo\n", offset=0)))
        assert (await call.read()).event.HasField("started")
        got = bytearray()
        while len(got) < 8:
            got += (await call.read()).event.output.data
        await killed(first)
    second = await ground.daemon()
    async with at(second) as stubs:
        call = stubs.executions.Execute()
        offsets = [pb.ChannelOffset(channel=1, offset=len(got))]
        await call.write(pb.ExecuteRequest(attach=pb.AttachRequest(execution_id="run", offsets=offsets)))
        assert (await call.read()).event.HasField("started")
        await call.write(pb.ExecuteRequest(stdin=pb.Stdin(data=b"two\nthree\n", offset=4)))
        await call.write(pb.ExecuteRequest(end_of_input=pb.EndOfInput()))
        # Among the output there may be notices, such as that it waits for input.
        while not (event := (await call.read()).event).HasField("finished"):
            got += event.output.data
        assert event.finished.verdict == pb.VERDICT_EXITED
    assert bytes(got) == b"ONE\nTWO\nTHREE\n"
    await stopped(second, ground)


async def test_a_retry_of_the_same_id_after_a_kill_does_not_run_it_again(ground: Ground) -> None:
    spec = python("open('runs', 'a').write('x'); import time; time.sleep(1); print('done')", execution_id="run")
    first = await ground.daemon()
    async with at(first) as stubs:
        await create(stubs)
        await start(stubs, spec)
        await killed(first)
    second = await ground.daemon()
    async with at(second) as stubs:
        answer = await stubs.executions.Run(pb.RunRequest(spec=spec))
        assert (answer.stdout, answer.finished.verdict) == (b"done\n", pb.VERDICT_EXITED)
        answer = await stubs.executions.Run(pb.RunRequest(spec=python("print(open('runs').read())")))
        assert answer.stdout == b"x\n"
    await stopped(second, ground)


async def test_random_kills_under_load_lose_nothing_and_leave_nothing(default_image: str) -> None:
    tally = await campaign(kills=8, clients=2, seed=7)
    assert tally.described == []
    assert (tally.kills, tally.faults) == (8, 0)
    assert tally.attachments > 0


# -- the database


async def test_a_damaged_database_is_refused_with_the_way_out(ground: Ground) -> None:
    first = await ground.daemon()
    async with at(first) as stubs:
        await create(stubs)
    await killed(first)
    path = ground.folder / "e" / DATABASE_NAME
    path.write_bytes(b"\xff" * 8192)
    for more in ("-wal", "-shm"):  # everything is in there still
        path.with_name(f"{DATABASE_NAME}{more}").unlink()
    refused = ground.start_daemon()
    assert await refused.ended() == 1
    assert "damaged" in refused.text
    assert "move the file away" in refused.text
    assert len(ground.containers()) == 1
    path.unlink()
    for more in path.parent.glob(f"{DATABASE_NAME}-*"):
        more.unlink()
    second = await ground.daemon()
    await until(lambda: ground.containers() == [], "the removal of what nobody knows any more")
    await stopped(second, ground)


async def test_on_a_full_disk_nothing_new_is_made_and_what_there_is_goes_on(ground: Ground) -> None:
    state_dir = ground.mount_tmpfs("full", "2m")
    daemon = await ground.daemon(state_dir=state_dir)
    async with at(daemon) as stubs:
        await create(stubs)
        filler = state_dir / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(b"x" * 4 * MIB)
        refusals = []
        for number in range(50):  # until what the database has ready is used up
            try:
                await stubs.executions.Run(pb.RunRequest(spec=python("pass", execution_id=f"run-{number}")))
            except aio.AioRpcError as error:
                refusals.append(error)
                break
        assert [error.code() for error in refusals] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert "make room there" in str(refusals[0].details())
        filler.unlink()
        answer = await stubs.executions.Run(pb.RunRequest(spec=python("print(6 * 7)")))
        assert answer.stdout == b"42\n"
    await killed(daemon)
    again = await ground.daemon(state_dir=state_dir)
    async with at(again) as stubs:
        await until(lambda: '"sandbox adopted"' in again.text, "the sandbox")
        answer = await stubs.executions.Run(pb.RunRequest(spec=python("print(6 * 7)")))
        assert answer.stdout == b"42\n"
    again.send(signal.SIGTERM)
    assert await again.ended() == 0
    assert ground.containers() == []


async def test_a_second_daemon_on_the_directory_leaves_the_first_alone(ground: Ground) -> None:
    first = await ground.daemon()
    async with at(first) as stubs:
        await create(stubs)
        second = ground.start_daemon(name="other", state_dir=ground.folder / "e")
        assert await second.ended() == 4
        assert "uses the state directory" in second.text
        answer = await stubs.executions.Run(pb.RunRequest(spec=python("print(6 * 7)")))
        assert answer.stdout == b"42\n"
    await stopped(first, ground)


async def test_a_stop_that_keeps_sandboxes_hands_them_to_the_next_daemon(ground: Ground) -> None:
    flags = ("--daemon-keep-sandboxes-on-stop", "true")
    first = await ground.daemon(*flags)
    async with at(first) as stubs:
        await create(stubs)
        head = await start(stubs, python(SLOW, execution_id="run"), 1_000)
    first.send(signal.SIGTERM)
    assert await first.ended() == 0
    first.check_log()
    assert len(ground.containers()) == 1
    second = await ground.daemon()
    async with at(second) as stubs:
        tail, finished = await follow(stubs, "run", len(head))
        assert finished.verdict == pb.VERDICT_EXITED
        assert len(head + tail) == LINES * 98
    await stopped(second, ground)
