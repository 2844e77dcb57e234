"""A daemon that comes after another on the same state directory: what lives goes on."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.core import leftovers
from tests.service.daemons import PATIENCE_S, python
from tests.service.recovery import AWAITED, SLOW, WHOLE, World, followed, go, info, new_world, recovered, run, started


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """See `World`."""
    monkeypatch.setattr(leftovers, "RETRY_S", 0.02)
    async with new_world(World) as world:
        yield world


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
    timeout_s = 3 if verdict == pb.VERDICT_TIMEOUT else PATIENCE_S
    async with world.daemon() as first:
        await first.create()
        head = await started(first, python(AWAITED + code, execution_id="run", timeout_s=timeout_s), 6)
    go(world)
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
        # Among the output there may be notices, such as that it waits for input.
        while not (event := (await call.read()).event).HasField("finished"):
            got += event.output.data
        assert event.finished.verdict == pb.VERDICT_EXITED
    assert bytes(got) == b"ONE\nTWO\nTHREE\n"


async def test_a_client_that_ends_the_input_again_of_what_ended_meanwhile_disturbs_nobody(world: World) -> None:
    code = f"import sys\nprint(len(sys.stdin.read()), flush=True)\n{AWAITED}"
    async with world.daemon() as first:
        await first.create()
        call = first.execution_stub.Execute()
        await call.write(pb.ExecuteRequest(start=python(code, execution_id="run", stdin=True)))
        await call.write(pb.ExecuteRequest(stdin=pb.Stdin(data=b"x" * 1000, offset=0)))
        await call.write(pb.ExecuteRequest(end_of_input=pb.EndOfInput()))
        got = b""
        while got != b"1000\nbegun\n":  # until it has all of its input, and would not miss this client
            got += (await call.read()).event.output.data
        call.cancel()
    go(world)
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
