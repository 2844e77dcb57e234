"""A daemon that comes after another on the same state directory: everything that lives goes on, the rest is told."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal as signals
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.core import leftovers, watching
from enclaved.core.ownership import Ownership
from enclaved.core.state import DATABASE_NAME, State
from enclaved.daemon import StartError
from enclaved.errors import EngineUnavailable
from enclaved.model import SandboxState
from enclaved.runtime.base import ContainerPlan, ContainerRecord, ContainerStatus
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.daemons import PATIENCE_S, Running, daemon, python, settings_in, short_directory
from tests.service.edge import reason

LINES = 3000
SLOW = f"""
import time
for number in range({LINES}):
    print(f"{{number:06}} {{'x' * 60}}", flush=True)
    if number % 100 == 0:
        time.sleep(0.01)
"""
WHOLE = b"".join(b"%06d %s\n" % (number, b"x" * 60) for number in range(LINES))


class Engine(SubprocessRuntime):
    """Outlives daemons. Can be away."""

    away = False
    paused = False
    looks = 0

    async def has_not(self, container_id: str) -> None:
        """Waits until a container is gone."""

        async def is_gone() -> bool:
            return container_id not in self._containers

        await until(is_gone)

    async def close(self) -> None:
        """The daemon has ended; the containers go on."""

    async def shut_down(self) -> None:
        await super().close()

    async def info(self) -> Any:
        self._ask()
        return await super().info()

    async def list_records(self) -> list[ContainerRecord]:
        self._ask()
        return await super().list_records()

    async def status(self, container_id: str) -> ContainerStatus | None:
        self._ask()
        self.looks += 1
        found = await super().status(container_id)
        return replace(found, paused=found.paused or self.paused) if found is not None else None

    def _ask(self) -> None:
        if self.away:
            raise EngineUnavailable("subprocess", "it sleeps")


class World:
    """A state directory and an engine, and the daemons that come and go there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = Engine()
        self.state_dir = folder / "state"

    @asynccontextmanager
    async def daemon(self, **flags: str) -> AsyncIterator[Running]:
        """A daemon whose sandboxes run on when it is gone."""
        settings = settings_in(self.folder, **{"daemon__keep_sandboxes_on_stop": "true", **flags})
        async with daemon(settings, runtime=self.engine) as running:
            yield running

    @asynccontextmanager
    async def state(self) -> AsyncIterator[State]:
        """What is written down, while no daemon runs."""
        found = State.open(self.state_dir / DATABASE_NAME)
        try:
            yield found
        finally:
            found.close()


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """See `World`."""
    monkeypatch.setattr(leftovers, "RETRY_S", 0.02)
    async with short_directory() as folder:
        made = World(folder)
        try:
            async with asyncio.timeout(PATIENCE_S):
                yield made
        finally:
            await made.engine.shut_down()


async def started(running: Running, spec: pb.ExecutionSpec, until_bytes: int = 0) -> bytes:
    """Starts an execution and leaves when it wrote so much; returns what came."""
    call = running.execution_stub.Execute()
    await call.write(pb.ExecuteRequest(start=spec))
    got = bytearray()
    assert (await call.read()).event.HasField("started")
    while len(got) < until_bytes:
        event = (await call.read()).event
        assert event.HasField("output"), event
        got += event.output.data
    call.cancel()
    return bytes(got)


async def followed(running: Running, execution_id: str, offset: int = 0) -> tuple[bytes, pb.Finished]:
    """Follows an execution from an offset to its end. Tries again while its guest is on its way back."""
    request = pb.AttachRequest(execution_id=execution_id, offsets=[pb.ChannelOffset(channel=1, offset=offset)])
    got = bytearray()
    async for answer in running.execution_stub.Attach(request):
        if answer.event.HasField("output"):
            if answer.event.output.channel == pb.CHANNEL_STDOUT:
                assert answer.event.output.offset == offset + len(got)
                got += answer.event.output.data
        elif answer.event.HasField("finished"):
            return bytes(got), answer.event.finished
    raise AssertionError("it did not end")


async def until(look: Callable[[], Awaitable[Any]]) -> Any:
    """Looks again and again until what it sees is true, and returns that."""
    for _ in range(10_000):
        if seen := await look():
            return seen
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come")


async def run(running: Running, code: str, sandbox_id: str = "box") -> str:
    """Runs Python to its end, as soon as the guest is there."""

    async def attempt() -> Any:
        try:
            return await running.execution_stub.Run(pb.RunRequest(spec=python(code, sandbox_id)))
        except grpc.aio.AioRpcError as error:
            if (error.code(), reason(error)) != (grpc.StatusCode.UNAVAILABLE, "GUEST_UNAVAILABLE"):
                raise
            return None

    return str((await until(attempt)).stdout.decode())


async def info(running: Running, sandbox_id: str = "box") -> Any:
    """Looks at a sandbox."""
    answer = await running.sandbox_stub.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id=sandbox_id))
    return answer.sandbox


async def has_status(running: Running, status: Any, sandbox_id: str = "box") -> Any:
    """Waits until a sandbox is in a state."""

    async def look() -> Any:
        found = await info(running, sandbox_id)
        return found if found.state == status else None

    return await until(look)


async def recovered(running: Running, outcome: str, count: int) -> None:
    """Waits until so many sandboxes had this outcome."""
    line = f'enclaved_sandboxes_recovered_total{{outcome="{outcome}"}} {count:.1f}'

    async def look() -> bool:
        return line in (await running.get("/metrics"))[1]

    await until(look)


# -- what lives


async def test_output_that_a_daemon_was_killed_in_is_whole(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
        head = await started(first, python(SLOW, execution_id="run"), 20_000)
    async with world.daemon() as second:
        tail, finished = await followed(second, "run", len(head))
        assert finished.verdict == pb.VERDICT_EXITED
        assert hashlib.sha256(head + tail).hexdigest() == hashlib.sha256(WHOLE).hexdigest()
        await recovered(second, "adopted", 1)


async def test_the_variables_of_a_context_are_there_for_the_next_daemon(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
        await run(first, "answer = 6 * 7")
    async with world.daemon() as second:
        assert await run(second, "print(answer)") == "42\n"


@pytest.mark.parametrize(
    ("code", "verdict", "exit_code", "signal"),
    [
        ("import sys; sys.exit(137)", pb.VERDICT_EXITED, 137, None),
        ("import os; os.kill(os.getpid(), 9)", pb.VERDICT_SIGNALED, None, 9),
        ("raise KeyError('gone')", pb.VERDICT_EXCEPTION, None, None),
        ("import time; time.sleep(600)", pb.VERDICT_TIMEOUT, None, None),
    ],
)
async def test_what_ended_while_there_was_no_daemon_has_its_true_verdict(
    world: World, code: str, verdict: int, exit_code: int | None, signal: int | None
) -> None:
    waiting = "import os, time\nprint('begun', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
    async with world.daemon() as first:
        await first.create()
        head = await started(first, python(waiting + code, execution_id="run", timeout_s=3), 6)
        (container,) = world.engine._containers.values()
    (container.working_dir / "go").touch()
    async with world.daemon() as second:
        tail, finished = await followed(second, "run", len(head))
        assert finished.verdict == verdict
        if exit_code is not None:
            assert finished.exit_code == exit_code
        if signal is not None:
            assert finished.signal == signal
        assert tail == b""


async def test_input_goes_on_at_its_offset(world: World) -> None:
    code = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"
    async with world.daemon() as first:
        await first.create()
        call = first.execution_stub.Execute()
        await call.write(pb.ExecuteRequest(start=python(code, execution_id="run", stdin=True)))
        await call.write(pb.ExecuteRequest(stdin=pb.Stdin(data=b"one\ntwo\n", offset=0)))
        assert (await call.read()).event.HasField("started")
        got = bytearray()
        while len(got) < 8:
            got += (await call.read()).event.output.data
        call.cancel()
    async with world.daemon() as second:
        call = second.execution_stub.Execute()
        offsets = [pb.ChannelOffset(channel=1, offset=len(got))]
        await call.write(pb.ExecuteRequest(attach=pb.AttachRequest(execution_id="run", offsets=offsets)))
        assert (await call.read()).event.HasField("started")
        await call.write(pb.ExecuteRequest(stdin=pb.Stdin(data=b"two\nthree\n", offset=4)))  # the first half is known
        await call.write(pb.ExecuteRequest(end_of_input=pb.EndOfInput()))
        while (event := (await call.read()).event).HasField("output"):
            got += event.output.data
        assert event.finished.verdict == pb.VERDICT_EXITED
    assert bytes(got) == b"ONE\nTWO\nTHREE\n"


async def test_a_client_that_ends_the_input_again_of_what_ended_meanwhile_disturbs_nobody(world: World) -> None:
    code = "import os, sys\nprint('begun', flush=True)\nprint(len(sys.stdin.read()))"
    async with world.daemon() as first:
        await first.create()
        call = first.execution_stub.Execute()
        await call.write(pb.ExecuteRequest(start=python(code, execution_id="run", stdin=True)))
        while not (await call.read()).event.HasField("output"):
            pass
        await call.write(pb.ExecuteRequest(stdin=pb.Stdin(data=b"x" * 1000, offset=0)))
        await call.write(pb.ExecuteRequest(end_of_input=pb.EndOfInput()))
        call.cancel()
    async with world.daemon() as second:
        _, finished = await followed(second, "run")
        assert finished.verdict == pb.VERDICT_EXITED
    async with world.daemon() as third:
        call = third.execution_stub.Execute()
        await call.write(pb.ExecuteRequest(attach=pb.AttachRequest(execution_id="run")))
        await call.write(pb.ExecuteRequest(end_of_input=pb.EndOfInput()))
        while not (await call.read()).event.HasField("finished"):
            pass
        assert await run(third, "print(6 * 7)") == "42\n"


async def test_the_same_id_does_not_run_twice(world: World) -> None:
    spec = python("open('runs', 'a').write('x'); import time; time.sleep(0.5); print('done')", execution_id="run")
    async with world.daemon() as first:
        await first.create()
        await started(first, spec)
    async with world.daemon() as second:
        answer = await second.execution_stub.Run(pb.RunRequest(spec=spec))
        assert (answer.stdout, answer.finished.verdict) == (b"done\n", pb.VERDICT_EXITED)
    async with world.daemon() as third:
        answer = await third.execution_stub.Run(pb.RunRequest(spec=spec))
        assert answer.finished.verdict == pb.VERDICT_EXITED
        assert await run(third, "print(open('runs').read())") == "x\n"


async def test_a_sandbox_survives_any_number_of_daemons(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
        created = await info(first)
        head = await started(first, python(SLOW, execution_id="run"), 5_000)
    for _ in range(5):
        async with world.daemon() as another:
            await recovered(another, "adopted", 1)
    async with world.daemon() as last:
        tail, _ = await followed(last, "run", len(head))
        assert head + tail == WHOLE
        found = await info(last)
        assert (found.create_time, found.expire_time) == (created.create_time, created.expire_time)


async def test_many_are_taken_up_at_once_and_new_ones_beside_them(world: World) -> None:
    names = [f"box-{number}" for number in range(8)]
    async with world.daemon() as first:
        await asyncio.gather(*(first.create(name) for name in names))
        await asyncio.gather(*(run(first, f"name = {name!r}", name) for name in names))
    async with world.daemon(limits__sandboxes_max="9") as second:
        await second.create("new")
        with pytest.raises(grpc.aio.AioRpcError, match="sandboxes_max"):
            await second.create("too-many")
        said = await asyncio.gather(*(run(second, "print(name)", name) for name in names))
        assert said == [f"{name}\n" for name in names]
        listed = await second.sandbox_stub.ListSandboxes(sandbox_pb.ListSandboxesRequest())
        assert [sandbox.id for sandbox in listed.sandboxes] == [*names_in_order(listed), "new"]
        assert len({sandbox.uid for sandbox in listed.sandboxes}) == 9


def names_in_order(listed: Any) -> list[str]:
    """The old ones in the order in which they were made."""
    return [sandbox.id for sandbox in sorted(listed.sandboxes, key=lambda s: s.create_time.ToDatetime())][:-1]


async def test_stopped_sandboxes_stay_stopped_with_their_files(world: World) -> None:
    async with world.daemon() as first:
        request = sandbox_pb.CreateSandboxRequest(sandbox_id="parked")
        request.spec.remove_on_exit = False
        await first.sandbox_stub.CreateSandbox(request)
        await first.create("plain")
        await run(first, "open('kept', 'w').write('yes')", "parked")
        for name in ("parked", "plain"):
            await first.sandbox_stub.StopSandbox(sandbox_pb.StopSandboxRequest(sandbox_id=name))
    async with world.daemon() as second:
        for name in ("parked", "plain"):
            assert (await info(second, name)).state == sandbox_pb.Sandbox.STATE_STOPPED
            await second.sandbox_stub.StartSandbox(sandbox_pb.StartSandboxRequest(sandbox_id=name))
        assert await run(second, "print(open('kept').read())", "parked") == "yes\n"
        assert await run(second, "print(6 * 7)", "plain") == "42\n"


async def test_a_sandbox_can_be_deleted_before_its_guest_is_back(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
    async with world.daemon() as second:
        await second.sandbox_stub.DeleteSandbox(sandbox_pb.DeleteSandboxRequest(sandbox_id="box"))
        await second.create()
        assert await run(second, "print(6 * 7)") == "42\n"
    assert len(world.engine._containers) == 1


# -- what does not


async def test_a_sandbox_that_died_meanwhile_is_lost_with_its_executions(world: World) -> None:
    async with world.daemon() as first:
        await first.create("dead")
        await first.create("gone")
        await started(first, python(SLOW, "dead", execution_id="run"))
    dead, gone = world.engine._containers
    process = world.engine._containers[dead].process
    assert process is not None
    process.kill()
    await process.wait()
    await SubprocessRuntime.remove(world.engine, gone)
    async with world.daemon() as second:
        _, finished = await followed(second, "run")
        assert finished.verdict == pb.VERDICT_SANDBOX_LOST
        found = await has_status(second, sandbox_pb.Sandbox.STATE_ERROR, "dead")
        assert found.state_reason.startswith("its container ended with code")
        found = await has_status(second, sandbox_pb.Sandbox.STATE_ERROR, "gone")
        assert found.state_reason == "its container was removed by somebody else"
        await recovered(second, "lost", 2)
    async with world.daemon() as third:
        assert (await info(third, "dead")).state == sandbox_pb.Sandbox.STATE_ERROR
        _, finished = await followed(third, "run")
        assert finished.verdict == pb.VERDICT_SANDBOX_LOST


async def test_a_sandbox_whose_time_came_meanwhile_is_removed(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
    async with world.state() as state:
        (row,) = state.sandboxes.load()
        state.sandboxes.save(replace(row, expires_monotonic_s=row.expires_monotonic_s - row.spec.ttl_s))
    async with world.daemon() as second:

        async def is_gone() -> bool:
            return not (await second.sandbox_stub.ListSandboxes(sandbox_pb.ListSandboxesRequest())).sandboxes

        await until(is_gone)
    assert world.engine._containers == {}


async def test_half_made_and_half_deleted_sandboxes_are_removed(world: World) -> None:
    async with world.daemon() as first:
        await first.create("half-made")
        await first.create("half-deleted")
    async with world.state() as state:
        for row, half in zip(state.sandboxes.load(), (SandboxState.INITIALIZING, SandboxState.DELETING), strict=True):
            state.sandboxes.save(replace(row, state=half, container_id=None, history=row.history[:1]))
    async with world.daemon() as second:
        await recovered(second, "removed", 2)
        assert world.engine._containers == {}
        assert list((world.state_dir / "s").iterdir()) == []
    async with world.state() as state:
        assert state.sandboxes.load() == []


async def test_a_container_that_nobody_wrote_down_is_removed_and_what_is_not_ours_stays(world: World) -> None:
    async with world.daemon() as first:
        await first.create("forgotten")
        await first.create("kept")
    (forgotten, plan), _ = ((name, found.plan) for name, found in world.engine._containers.items())
    async with world.state() as state:
        state.sandboxes.forget("forgotten", 1)
    foreign = await world.engine.create(_labelled(plan, Ownership(b"somebody else")))
    async with world.daemon() as second:
        await world.engine.has_not(forgotten)
        assert await run(second, "print(6 * 7)", "kept") == "42\n"
    assert foreign in world.engine._containers


def _labelled(plan: ContainerPlan, ownership: Ownership) -> ContainerPlan:
    return replace(plan, labels=ownership.labels("forgotten", 1))


async def test_what_runs_and_was_not_written_down_is_ended(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
        await started(first, python("import time; print('begun', flush=True); time.sleep(600)", execution_id="run"), 6)
    async with world.state() as state:
        state.executions.forget("run")
    async with world.daemon() as second:
        assert await run(second, "print(6 * 7)") == "42\n"  # it waits for the context until the stranger is ended
        with pytest.raises(grpc.aio.AioRpcError, match="not found"):
            await followed(second, "run")


async def test_a_guest_that_does_not_come_back_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "REJOIN_PATIENCE_S", 0.05)
    monkeypatch.setattr(watching, "STATUS_EVERY_S", 0.05)
    monkeypatch.setattr(watching, "REJOIN_DEADLINE_S", 0.2)
    async with world.daemon() as first:
        await first.create()
    (container,) = world.engine._containers.values()
    assert container.process is not None
    os.killpg(container.process.pid, signals.SIGSTOP)
    async with world.daemon() as second:
        found = await has_status(second, sandbox_pb.Sandbox.STATE_ERROR)
        assert found.state_reason == "its guest did not come back within 0.2 s of the daemon's return"


async def test_a_paused_container_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "REJOIN_PATIENCE_S", 0.01)
    monkeypatch.setattr(watching, "STATUS_EVERY_S", 0.01)
    monkeypatch.setattr(watching, "REJOIN_DEADLINE_S", 0.0)
    async with world.daemon() as first:
        await first.create()
    (container,) = world.engine._containers.values()
    assert container.process is not None
    os.killpg(container.process.pid, signals.SIGSTOP)
    world.engine.paused = True
    async with world.daemon() as second:

        async def was_asked_often() -> bool:
            return world.engine.looks > 20

        await until(was_asked_often)
        assert (await info(second)).state == sandbox_pb.Sandbox.STATE_PAUSED
        monkeypatch.setattr(watching, "REJOIN_PATIENCE_S", 60.0)
        monkeypatch.setattr(watching, "REJOIN_DEADLINE_S", 60.0)
        os.killpg(container.process.pid, signals.SIGCONT)
        await recovered(second, "adopted", 1)
        assert await run(second, "print(6 * 7)") == "42\n"


async def test_a_daemon_that_cannot_listen_yet_tries_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LISTEN_RETRY_S", 0.02)
    async with world.daemon() as first:
        await first.create()
    (directory,) = (world.state_dir / "s").iterdir()
    place, aside = directory / "socket", directory / "aside"
    place.rename(aside)
    place.touch()
    async with world.daemon() as second:
        with pytest.raises(grpc.aio.AioRpcError, match="reconnecting"):
            await second.execution_stub.Run(pb.RunRequest(spec=python("pass")))
        place.unlink()
        aside.rename(place)
        assert await run(second, "print(6 * 7)") == "42\n"


# -- what is away


async def test_without_an_engine_the_living_are_taken_up_and_the_dead_are_not_given_up(world: World) -> None:
    async with world.daemon() as first:
        await first.create("living")
        await first.create("dead")
        await run(first, "answer = 6 * 7", "living")
    process = list(world.engine._containers.values())[1].process
    assert process is not None
    process.kill()
    await process.wait()
    world.engine.away = True
    async with world.daemon() as second:
        await recovered(second, "adopted", 1)
        assert await run(second, "print(answer)", "living") == "42\n"
        assert (await info(second, "dead")).state == sandbox_pb.Sandbox.STATE_RUNNING
        world.engine.away = False
        await has_status(second, sandbox_pb.Sandbox.STATE_ERROR, "dead")


# -- what cannot be read


async def test_a_damaged_database_is_a_clear_refusal_and_touches_nothing(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
    path = world.state_dir / DATABASE_NAME
    whole = path.read_bytes()
    path.write_bytes(b"\xff" * len(whole))
    with pytest.raises(StartError, match=r"state\.db.*damaged.*move the file away"):
        async with world.daemon():
            pass
    assert len(world.engine._containers) == 1
    path.write_bytes(whole)
    async with world.daemon() as second:
        assert await run(second, "print(6 * 7)") == "42\n"


async def test_without_its_database_a_daemon_removes_what_is_left(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
    (container_id,) = world.engine._containers
    (world.state_dir / DATABASE_NAME).unlink()
    async with world.daemon():
        await world.engine.has_not(container_id)


async def test_a_second_daemon_is_refused_and_disturbs_nothing(world: World) -> None:
    async with world.daemon() as first:
        await first.create()
        with pytest.raises(StartError, match="uses the state directory"):
            async with world.daemon():
                pass
        assert await run(first, "print(6 * 7)") == "42\n"


async def test_a_stop_that_does_not_keep_sandboxes_leaves_nothing_written_down(world: World) -> None:
    async with world.daemon(daemon__keep_sandboxes_on_stop="false") as first:
        await first.create()
        assert await run(first, "print(6 * 7)") == "42\n"
    assert world.engine._containers == {}
    async with world.daemon():
        pass
    async with world.state() as state:
        assert (state.sandboxes.load(), state.executions.load()) == ([], [])
