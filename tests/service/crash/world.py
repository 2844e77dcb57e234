"""A state directory, an engine that outlives daemons, and somebody who starts the next daemon when one has died."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

from enclaved.core.state import DATABASE_NAME
from tests.service.crash import fuse
from tests.service.crash.client import Client
from tests.service.crash.engine import Engine
from tests.service.crash.fuse import CRASHED, Point
from tests.service.crash.history import History, Seen, leaks
from tests.service.crash.look import docker_containers, look_round, remove_docker_containers
from tests.service.crash.process import ENGINE, Daemon

PATIENCE_S = 20.0
LOOK_EVERY_S = 0.02
FAULTS_OF_OURS = ("fault of ours", "background task failed", "Traceback", "never retrieved", "never awaited", "Fatal")


class World:
    """What a test has. `end` says whether anything stayed."""

    def __init__(self, folder: Path, engine: Engine | None, **flags: str) -> None:
        """``engine=None``: that of this machine."""
        self.folder, self.engine, self.flags, self.history = folder, engine, flags, History()
        self.daemon: Daemon | None = None
        self.crashes = 0
        self.state_dir = folder / "state"
        self.address = f"unix:{folder}/e.sock"
        self.client = self.another_client("client")
        self.boxes: list[str] = []
        self._before_next: Callable[[], None] | None = None

    def another_client(self, name: str) -> Client:
        """One more client with the same history."""
        return Client(self.address, self.history, name)

    @property
    def box(self) -> str:
        """The sandbox that was made first."""
        return self.boxes[0]

    async def up(self) -> None:
        """Starts daemons until one serves; one that dies before may have met its point."""
        while True:
            daemon = self.daemon = Daemon.start(self.folder, self.flags, on_docker=self.engine is None)
            await until(lambda daemon=daemon: daemon.is_ready or daemon.exit_code is not None, "a daemon")  # type: ignore[misc]
            if daemon.exit_code is None:
                return
            self._count(daemon.exit_code)

    async def restart(self, before_next: Callable[[], None] = lambda: None) -> None:
        """Kills the daemon, for `look_after` to start the next one; before that it does what it is told."""
        assert self.daemon is not None
        killed = self.daemon
        self._before_next = before_next
        killed.kill()
        await until(lambda: self.daemon is not killed, "another daemon")

    def write_down_as_half_made(self, sandbox_id: str) -> None:
        """Makes the database say that a sandbox is being made, while no daemon runs."""
        with closing(sqlite3.connect(self.state_dir / DATABASE_NAME)) as connection, connection:
            sql = "UPDATE sandboxes SET state = 'initializing', container_id = NULL WHERE id = ?"
            assert connection.execute(sql, (sandbox_id,)).rowcount == 1

    async def look_after(self) -> None:
        """Starts the next daemon whenever one has met its point. Never returns."""
        while True:
            assert self.daemon is not None
            code = await self.daemon.ended(3600)
            self._count(code)
            await self.up()

    def _count(self, code: int) -> None:
        if self._before_next is not None and code == -signal.SIGKILL:
            self._before_next()
            self._before_next = None
            return
        assert code == CRASHED, f"the daemon ended with {code}:\n{self.log[-4000:]}"
        self.crashes += 1

    @property
    def log(self) -> str:
        """What daemons wrote."""
        path = self.folder / "daemon.log"
        return path.read_text(errors="replace") if path.exists() else ""

    async def crashing(self, point: Point, work: Callable[[World], Awaitable[None]]) -> None:
        """Does some work with clients that try again while the daemon dies once, at a point, and another comes."""
        fuse.arm(self.folder, point)
        looking = asyncio.create_task(self.look_after())
        working = asyncio.ensure_future(work(self))
        try:
            await asyncio.wait((looking, working), return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                looking.result()
            working.result()
            # What goes on in the background may meet the point later.
            await until(lambda: not fuse.is_armed(self.folder) or looking.done(), f"a daemon that dies {point}")
            await until(lambda: self.crashes > 0 or looking.done(), "its end")
        finally:
            for task in (looking, working):
                task.cancel()
            await asyncio.wait((looking, working))
        await until(lambda: self.daemon is not None and self.daemon.is_ready, "the next daemon")
        assert self.crashes == 1

    async def crashing_at_the_start(self, point: Point) -> None:
        """Starts a daemon, which dies at a point before it serves, and another one."""
        fuse.arm(self.folder, point)
        await self.up()
        assert self.crashes == 1

    # -- what there is

    async def seen(self) -> Seen:
        """Looks at everything."""
        found = self.engine.containers() if self.engine is not None else docker_containers(self.state_dir)
        return await look_round(self.client, self.history, self.state_dir, found)

    async def check(self) -> None:
        """Fails unless everything fits what clients were told. What daemons do in the background may take a moment."""
        deadline = time.monotonic() + PATIENCE_S
        while faults := self.history.faults(await self.seen()):
            assert time.monotonic() < deadline, "\n".join([*faults, self.log[-6000:]])
            await asyncio.sleep(0.1)

    async def end(self) -> None:
        """Deletes everything, stops the daemon, and fails if anything stayed."""
        for pool_id in await self.client.pools():
            await self.client.delete_pool(pool_id)
        for sandbox_id in await self.client.list():
            await self.client.change("delete", sandbox_id)
        deadline = time.monotonic() + PATIENCE_S
        while left := await self._left():
            assert time.monotonic() < deadline, "\n".join([*left, self.log[-6000:]])
            await asyncio.sleep(0.1)
        assert self.daemon is not None
        self.daemon.ask_to_stop()
        code = await self.daemon.ended(PATIENCE_S)
        assert code == 0, f"it ended with {code}:\n{self.log[-4000:]}"
        self.daemon = None
        drafts = [path.name for path in self.state_dir.rglob("*") if path.name.startswith(".")]
        assert drafts == [], drafts
        assert guests(self.folder) == []
        lines = [line for line in self.log.splitlines() if any(fault in line for fault in FAULTS_OF_OURS)]
        assert lines == [], "\n".join(lines)

    async def _left(self) -> list[str]:
        """What there still is when everything was deleted."""
        seen = await self.seen()
        return [*leaks(seen), *seen.sandboxes, *seen.containers, *seen.directories, *seen.rows]


@asynccontextmanager
async def world(*, on_docker: bool = False, **flags: str) -> AsyncIterator[World]:
    """A world of which nothing stays."""
    folder = Path(tempfile.mkdtemp(prefix="ec", dir="/tmp"))  # short, since the paths of sockets lie below it
    folder.chmod(0o711)
    try:
        async with AsyncExitStack() as stack:
            made = World(folder, None if on_docker else Engine(), **flags)
            if made.engine is not None:
                await stack.enter_async_context(made.engine.serving(folder / ENGINE))
            try:
                yield made
            finally:
                if made.daemon is not None:
                    made.daemon.kill()
                if on_docker:
                    remove_docker_containers(made.state_dir)
    finally:
        shutil.rmtree(folder)


async def until(look: Callable[[], bool], what: str) -> None:
    """Looks again and again until what it sees is true. Fails after a while."""
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        await asyncio.sleep(LOOK_EVERY_S)


def guests(folder: Path) -> list[int]:
    """The processes of guests of a folder."""
    mark, found = os.fsencode(folder), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
