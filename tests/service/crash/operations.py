"""What clients do while a daemon dies, and every point of it at which one is made to die."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tests.service.crash.client import Client, blob, program
from tests.service.crash.fuse import Point
from tests.service.crash.history import CHANGES, History, state_of
from tests.service.crash.world import World, until

BOX_REQUEST = "box"


async def nothing(world: World) -> None:
    """Prepares nothing."""


@dataclass(frozen=True)
class Operation:
    """Something that clients do, and the seams that the daemon passes while it does that."""

    name: str
    work: Callable[[World], Awaitable[None]]
    points: Sequence[Point]
    prepare: Callable[[World], Awaitable[None]] = nothing


def before(*seams: str) -> list[Point]:
    """Points before the first passage of seams."""
    return [Point(seam, "before") for seam in seams]


def after(*seams: str) -> list[Point]:
    """Points after it."""
    return [Point(seam, "after") for seam in seams]


def around(*seams: str) -> list[Point]:
    """Points before and after it."""
    return [*before(*seams), *after(*seams)]


def through(*seams: str) -> list[Point]:
    """Points before, during and after it."""
    return [*before(*seams), *(Point(seam, "during") for seam in seams), *after(*seams)]


# -- the life of a sandbox


async def a_box(world: World) -> None:
    """One sandbox, in which something was run and written."""
    box = await world.client.create(BOX_REQUEST)
    world.boxes.append(box)
    run, spec = program("earlier", box)
    await world.client.run(run, spec)
    await world.client.write(box, "kept", blob("kept", 100_000))


async def a_kept_box(world: World) -> None:
    """One that keeps its files when it is stopped."""
    world.boxes.append(await world.client.create(BOX_REQUEST, remove_on_exit=False))
    await world.client.write(world.box, "kept", blob("kept", 1000))


async def a_paused_box(world: World) -> None:
    """One that is paused."""
    await a_box(world)
    await world.client.change("pause", world.box)


async def a_stopped_box(world: World) -> None:
    """One that was stopped, and has no container."""
    await a_box(world)
    await world.client.change("stop", world.box)


async def a_parked_box(world: World) -> None:
    """One that was stopped, and has its container."""
    await a_kept_box(world)
    await world.client.change("stop", world.box)


async def create(world: World) -> None:
    """Creates a sandbox and uses it."""
    box = await world.client.create("new")
    run, spec = program("first", box)
    await world.client.run(run, spec)


async def create_again(world: World) -> None:
    """Asks once more for what is there."""
    assert await world.client.create(BOX_REQUEST) == world.box


async def delete(world: World) -> None:
    """Deletes a sandbox."""
    await world.client.change("delete", world.box)
    assert await world.client.look(world.box) is None


async def expire(world: World) -> None:
    """A sandbox whose time comes."""
    box = await world.client.create("brief", ttl_s=1.5)
    with world.history.attempt("time", "delete", box):
        await world.client.is_gone(box)


async def shut_down(world: World) -> None:
    """Stops the daemon, which removes its sandboxes."""
    assert world.daemon is not None
    for sandbox_id in await world.client.list():
        with world.history.attempt("operator", "delete", sandbox_id):
            pass
    world.daemon.ask_to_stop()
    await until(lambda: world.crashes > 0, "the end of a daemon")


def changed(kind: str) -> Callable[[World], Awaitable[None]]:
    """Changes the state of a sandbox."""

    async def change(world: World) -> None:
        assert await world.client.change(kind, world.box)
        found = await world.client.look(world.box)
        assert found is not None
        assert state_of(found) == CHANGES[kind]  # at once, also where the daemon before had begun it

    return change


async def update(world: World) -> None:
    """Changes labels and limits of a sandbox."""
    labels = {"request": BOX_REQUEST, "changed": "yes"}
    assert await world.client.update(world.box, labels, memory_limit_bytes=256 * 1024 * 1024, ttl_s=4000)


# -- executions and files


async def execute(world: World) -> None:
    """Runs a program that writes for a while."""
    run, spec = program("run", world.box, pause_s=0.005)
    await world.client.run(run, spec)


async def execute_with_input(world: World) -> None:
    """Runs a program that reads."""
    run, spec = program("run", world.box, reads=True)
    await world.client.run(run, spec, stdin=run.expected[1].lower())


async def run_and_wait(world: World) -> None:
    """Runs a program with the call that has one answer."""
    run, spec = program("run", world.box)
    await world.client.run_once(run, spec)


async def cancel(world: World) -> None:
    """Cancels a program that would run on."""
    run, spec = program("run", world.box, lines=100_000, pause_s=0.01)
    run.expected, run.verdicts = {}, ("CANCELLED",)
    running = asyncio.create_task(world.client.run(run, spec))
    await until(lambda: run.was_started or running.done(), "a program that runs")
    await world.client.cancel("run", world.box)
    await running


async def write(world: World) -> None:
    """Replaces a file by a larger one."""
    await world.client.write(world.box, "kept", blob("new", 300_000))


# -- pools


async def a_pool(world: World) -> None:
    """A pool that was used."""
    await world.client.make_pool("pool", 2)
    await in_pool(world)


async def make_pool(world: World) -> None:
    """Makes a pool and uses it."""
    assert len(set(await world.client.make_pool("pool", 2))) == 2
    await in_pool(world)


async def in_pool(world: World) -> None:
    """Runs programs in a pool. Each finds an empty directory, whoever was there before."""
    for number in range(3):
        code = f"import os\nprint({number}, os.listdir())\nopen('left-{number}', 'w').write('x')"
        answer = await world.client.run_in_pool("pool", code)
        if answer is None:  # pools may end with their daemon
            await world.client.make_pool("pool", 2)
            answer = await world.client.run_in_pool("pool", code)
        assert answer is not None
        assert answer.run.stdout.decode() == f"{number} []\n"


async def delete_pool(world: World) -> None:
    """Deletes a pool."""
    await world.client.delete_pool("pool")


async def claim(world: World) -> None:
    """Takes a member out of a pool, which then is a sandbox like others."""
    box = await world.client.claim("pool", "claimed")
    assert box is not None
    run, spec = program("claimed", box)
    await world.client.run(run, spec)


# -- daemons that come and go


async def several_boxes(world: World) -> None:
    """Sandboxes of all kinds."""
    await a_box(world)
    await world.client.change("pause", await world.client.create("paused"))
    await world.client.change("stop", await world.client.create("stopped"))


async def restart(world: World) -> None:
    """Kills the daemon while it makes a sandbox; the next one removes that and takes up the others."""
    unknown = await Client(world.address, History()).create("half-made")
    await world.restart(lambda: world.write_down_as_half_made(unknown))
    await execute(world)


REMOVAL = (*through("engine.remove", "directory.remove"), *around("socket.close"))
MAKING = (*around("directory.fill", "socket.listen"), *through("engine.create", "engine.starting"))

OPERATIONS = (
    Operation(
        "create",
        create,
        [
            *before("rpc.CreateSandbox"),
            *around("uid.take", "directory.name", "sql.insert.sandboxes.INITIALIZING", "sql.commit"),
            *MAKING,
            *around("guest.hello", "guest.ready", "frame.expire", "sql.insert.sandboxes.RUNNING"),
            *after("rpc.CreateSandbox"),
        ],
    ),
    Operation("create again", create_again, around("rpc.CreateSandbox"), a_box),
    Operation(
        "delete",
        delete,
        [
            *before("rpc.DeleteSandbox"),
            *around("sql.insert.sandboxes.DELETING"),
            *after("rpc.DeleteSandbox"),
            *REMOVAL,
            *around("sql.delete.sandboxes", "sql.insert.ended_requests", "uid.return"),
        ],
        a_box,
    ),
    Operation("expire", expire, [*around("sql.insert.sandboxes.DELETING"), *through("engine.remove")]),
    Operation(
        "stop",
        changed("stop"),
        [
            *around("sql.insert.sandboxes.STOPPING"),
            *REMOVAL,
            *around("sql.insert.sandboxes.STOPPED", "rpc.StopSandbox"),
        ],
        a_box,
    ),
    Operation(
        "stop and keep",
        changed("stop"),
        [*around("sql.insert.sandboxes.STOPPING", "frame.park", "guest.parked", "sql.insert.sandboxes.STOPPED")],
        a_kept_box,
    ),
    Operation(
        "start",
        changed("start"),
        [
            *around("sql.insert.sandboxes.INITIALIZING"),
            *MAKING,
            *around("guest.hello", "guest.ready", "sql.insert.sandboxes.RUNNING", "rpc.StartSandbox"),
        ],
        a_stopped_box,
    ),
    Operation("start what was kept", changed("start"), [*around("sql.insert.sandboxes.RUNNING")], a_parked_box),
    Operation(
        "pause",
        changed("pause"),
        [
            *around("frame.pause", "guest.paused"),
            *through("engine.pause"),
            *around("sql.insert.sandboxes.PAUSED", "rpc.PauseSandbox"),
        ],
        a_box,
    ),
    Operation(
        "resume",
        changed("resume"),
        [*through("engine.unpause"), *around("frame.resume", "sql.insert.sandboxes.RUNNING", "rpc.ResumeSandbox")],
        a_paused_box,
    ),
    Operation(
        "update",
        update,
        [
            *around("sql.insert.sandboxes.RUNNING"),
            *through("engine.update"),
            *around("frame.expire", "rpc.UpdateSandbox"),
        ],
        a_box,
    ),
    Operation(
        "execute",
        execute,
        [
            *before("rpc.Execute"),
            *around("sql.insert.executions", "frame.run", "answer.started", "guest.output", "answer.output"),
            *around("frame.acknowledge", "guest.finished", "guest.end", "answer.finished", "sql.update.executions"),
            *after("rpc.Execute"),
        ],
        a_box,
    ),
    Operation(
        "execute with input",
        execute_with_input,
        [*around("frame.stdin", "frame.end_of_input", "guest.stdin_taken")],
        a_box,
    ),
    Operation("run", run_and_wait, [*around("rpc.Run", "frame.run", "guest.finished")], a_box),
    Operation("cancel", cancel, [*around("rpc.CancelExecution", "frame.cancel")], a_box),
    Operation("write", write, [*around("rpc.WriteFile", "frame.stdin", "guest.finished")], a_box),
    Operation(
        "make pool",
        make_pool,
        [
            *around("sql.insert.pools", "sql.insert.pool_members", "rpc.InitializePool"),
            *through("engine.create"),
            Point("engine.create", "after", 2),
            Point("sql.insert.sandboxes.RUNNING", "after", 2),
            *around("sql.insert.leases"),
        ],
    ),
    Operation(
        "run in pool",
        in_pool,
        [*around("rpc.RunInPool", "sql.insert.executions", "frame.run", "sql.insert.leases")],
        a_pool,
    ),
    Operation("claim", claim, [*around("rpc.Claim", "sql.insert.sandboxes.RUNNING", "sql.insert.leases")], a_pool),
    Operation(
        "delete pool",
        delete_pool,
        [*around("rpc.DeletePool", "sql.delete.pool_members", "sql.delete.pools"), *through("engine.remove")],
        a_pool,
    ),
    Operation("shut down", shut_down, [*through("engine.remove"), *around("sql.delete.sandboxes")], several_boxes),
    Operation(
        "recover",
        restart,
        [
            *around("recovery.load", "socket.listen", "guest.hello", "guest.holds", "guest.ready"),
            *through("engine.list_records", "engine.remove"),
            *around("sql.delete.sandboxes"),
        ],
        several_boxes,
    ),
)
