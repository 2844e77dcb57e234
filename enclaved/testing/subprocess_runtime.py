"""A runtime without Docker for the service tests: the real guest as a child process on this machine.

It isolates nothing that matters and cannot be selected by configuration. As root the guest is PID 1 of a PID
namespace of its own and user code gets a uid of its own, so that every step of the real path runs; otherwise the
guest is a subreaper that kills only its own descendants. As root, guests die with the thread that started them: with
the event loop of a process that is killed, nothing is left of its sandboxes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from enclaved.errors import EngineRefused, ImageNotFound
from enclaved.model import EngineInfo, Network, PortMapping, PullProgress, ResourceUsage, SandboxSpec
from enclaved.runtime.base import (
    LABEL_ID,
    STDERR_TAIL_BYTES,
    ByteChannel,
    ContainerChange,
    ContainerEvent,
    ContainerPlan,
    ContainerRecord,
    ContainerStatus,
    Counters,
    Image,
    NetworkRecord,
    attached_guest_argv,
    guest_argv,
)

SOCKET_NAME = "agent.sock"
IMAGES = ("python:3.11-slim", "ms-enclave/python:3.11")
_DEADLINE_S = 10.0
_UNREAD_MOST_BYTES = 1024 * 1024
"""What waits for one who is attached and does not read, before the guest must wait."""
_EVENTS_MOST = 1000
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")


class _Tail:
    """The end of a stream."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0

    def add(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        while self._size - len(self._chunks[0]) >= STDERR_TAIL_BYTES:
            self._size -= len(self._chunks.popleft())

    def text(self) -> str:
        """At most the last 64 KiB, decoded with replacement."""
        return b"".join(self._chunks)[-STDERR_TAIL_BYTES:].decode("utf-8", "replace")


class _Channel:
    """One attach to a guest. Implements `ByteChannel`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._unread = bytearray()
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._closed = False

    async def read(self) -> bytes:
        """See `ByteChannel.read`."""
        while not self._unread and not self._closed:
            self._news.clear()
            await self._news.wait()
        data = bytes(self._unread)
        self._unread.clear()
        self._room.set()
        return data

    async def write(self, data: bytes) -> None:
        """See `ByteChannel.write`."""
        if self._process.stdin is not None and not self._closed:
            with contextlib.suppress(ConnectionError):
                self._process.stdin.write(data)
                await self._process.stdin.drain()

    async def push(self, data: bytes) -> None:
        """Takes what the guest has written; waits while too much is unread."""
        self._unread += data
        self._news.set()
        while len(self._unread) > _UNREAD_MOST_BYTES and not self._closed:
            self._room.clear()
            await self._room.wait()

    def close(self) -> None:
        """Ends the stream."""
        self._closed = True
        self._news.set()
        self._room.set()


@dataclass(slots=True)
class _Container:
    plan: ContainerPlan
    working_dir: Path
    process: Process | None = None
    tail: _Tail = field(default_factory=_Tail)
    drain: asyncio.Task[None] | None = None
    pump: asyncio.Task[None] | None = None
    channels: list[_Channel] = field(default_factory=list)
    paused: bool = False


class SubprocessRuntime:
    """Runs guests as child processes.

    ``python`` is the interpreter of the guests; it must be readable for any user. Default: the system's.
    """

    name = "subprocess"

    def __init__(self, python: str | None = None) -> None:
        system = "/usr/bin/python3"
        self._python = python or (system if Path(system).exists() else sys.executable)
        self._containers: dict[str, _Container] = {}
        self._listeners: list[asyncio.Queue[ContainerEvent]] = []
        self._base: Path | None = None
        self._in_namespace = os.getuid() == 0

    async def info(self) -> EngineInfo:
        """Describes this runtime."""
        return EngineInfo(name=self.name, version="0", available=True, cgroup_version=0)

    async def resolve_image(self, image: str, *, may_pull: bool) -> Image:
        """Knows the default image under its two names, and no other."""
        if image not in IMAGES:
            raise ImageNotFound(image, f"this runtime has only {', '.join(IMAGES)}")
        return Image(id="sha256:" + "0" * 64, name=image, env={}, volumes=())

    async def pull_image(self, image: str) -> AsyncGenerator[PullProgress]:
        """Has the default image already."""
        found = await self.resolve_image(image, may_pull=True)
        yield PullProgress(status="Image is up to date", image_id=found.id)

    async def create(self, plan: ContainerPlan) -> str:
        """Makes the working directory."""
        if plan.spec.mounts or plan.spec.network is not Network.NONE:
            raise EngineRefused("make the sandbox", "this runtime has neither mounts nor networks of its own")
        if self._base is None:
            self._base = Path(tempfile.mkdtemp(prefix="enclaved-subprocess-"))
            self._base.chmod(0o711)
        container_id = secrets.token_hex(32)
        working_dir = self._base / container_id[:12]
        working_dir.mkdir(mode=0o700)
        if self._in_namespace:
            os.chown(working_dir, plan.settings.uid, plan.settings.group)
        self._containers[container_id] = _Container(plan, working_dir)
        return container_id

    @contextlib.asynccontextmanager
    async def starting(self, container_id: str) -> AsyncIterator[_Tail]:
        """Starts the guest; its standard error is read for as long as it lives."""
        container = self._containers.get(container_id)
        if container is None:
            raise EngineRefused("start the sandbox", "it is gone")
        # Without a user of its own, what lies in /tmp may be anybody's.
        scratch_dirs = container.plan.settings.scratch_dirs if self._in_namespace else ()
        settings = replace(
            container.plan.settings,
            working_dir=str(container.working_dir),
            scratch_dirs=scratch_dirs,
            owns_mounts=False,  # a copy of the host's, in which the kernel undoes what is undone there
        )
        mode = "--container" if self._in_namespace else "--child"
        if container.plan.guest_arguments:
            argv = attached_guest_argv(self._python, container.plan.guest_arguments, settings, mode)
        else:
            socket_path = str(container.plan.socket_dir / SOCKET_NAME)
            argv = guest_argv(self._python, str(container.plan.guest_file), socket_path, settings, mode)
        if self._in_namespace:
            argv = [*_DIES_WITH_US, "unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", *argv]
        spawning = asyncio.create_task(self._spawn(container_id, container, argv))
        try:
            await asyncio.shield(spawning)
        except asyncio.CancelledError:
            await asyncio.wait([spawning], timeout=_DEADLINE_S)  # half a start could not be found again
            raise
        yield container.tail

    async def _spawn(self, container_id: str, container: _Container, argv: list[str]) -> None:
        stream = PIPE if container.plan.guest_arguments else DEVNULL
        try:
            container.process = await asyncio.create_subprocess_exec(
                *argv, stdin=stream, stdout=stream, stderr=PIPE, start_new_session=True, cwd="/", env={}
            )
        except OSError as error:
            raise EngineRefused("start the sandbox", str(error)) from error
        container.pump = asyncio.create_task(self._pump(container))
        container.drain = asyncio.create_task(self._drain(container_id, container, container.process))

    async def _drain(self, container_id: str, container: _Container, process: Process) -> None:
        if process.stderr is not None:
            while data := await process.stderr.read(65536):
                container.tail.add(data)
        await process.wait()
        self._tell(container_id, ContainerChange.ENDED)

    @staticmethod
    async def _pump(container: _Container) -> None:
        """Hands out what the guest writes; while nobody is attached, it is lost."""
        if container.process is not None and container.process.stdout is not None:
            while data := await container.process.stdout.read(65536):
                for channel in list(container.channels):
                    await channel.push(data)
        for channel in container.channels:
            channel.close()

    @contextlib.asynccontextmanager
    async def channel(self, container_id: str) -> AsyncIterator[ByteChannel]:
        """Attaches to the child process."""
        container = self._running(container_id, "attach to")
        if container.process is None or container.process.stdin is None:
            raise EngineRefused("attach to the sandbox", "its input is not open")
        channel = _Channel(container.process)
        container.channels.append(channel)
        try:
            yield channel
        finally:
            container.channels.remove(channel)
            channel.close()

    async def join_network(self, container_id: str, plan: ContainerPlan) -> tuple[PortMapping, ...]:
        """Has no networks."""
        return ()

    async def list_networks(self) -> list[NetworkRecord]:
        """Has no networks."""
        return []

    async def remove_network(self, network_id: str) -> bool:
        """Has no networks."""
        return True

    async def status(self, container_id: str) -> ContainerStatus | None:
        """Looks at the child process."""
        container = self._containers.get(container_id)
        if container is None:
            return None
        code = container.process.returncode if container.process is not None else None
        running = container.process is not None and code is None
        return ContainerStatus(running=running, paused=container.paused, exit_code=code, oom_killed=False, error="")

    async def pause(self, container_id: str) -> None:
        """Stops every process below the child process."""
        container = self._running(container_id, "pause")
        container.paused = True
        stopped: set[int] = set()
        while found := {*_tree(container)} - stopped:  # again, for those that were made meanwhile
            _signal(found, signal.SIGSTOP)
            stopped |= found
        self._tell(container_id, ContainerChange.PAUSED)

    async def unpause(self, container_id: str) -> None:
        """Lets them go on."""
        container = self._running(container_id, "unpause")
        if container.paused:
            container.paused = False
            _signal(_tree(container), signal.SIGCONT)
            self._tell(container_id, ContainerChange.RESUMED)

    async def update(self, container_id: str, spec: SandboxSpec) -> None:
        """Has no limits, and remembers them."""
        container = self._containers.get(container_id)
        if container is None:
            raise EngineRefused("change the limits of the sandbox", "it is gone")
        container.plan = replace(container.plan, spec=spec)
        self._tell(container_id, ContainerChange.UPDATED)

    def _running(self, container_id: str, what: str) -> _Container:
        container = self._containers.get(container_id)
        if container is None or container.process is None or container.process.returncode is not None:
            raise EngineRefused(f"{what} the sandbox", "it does not run")
        return container

    async def has_limits(self, container_id: str, spec: SandboxSpec) -> bool:
        """Has those that it remembers."""
        container = self._containers.get(container_id)
        return container is None or _limits(container.plan.spec) == _limits(spec)

    async def remove(self, container_id: str) -> None:
        """Kills the child process with all its own, and removes the working directory."""
        container = self._containers.pop(container_id, None)
        if container is None:
            return
        removing = asyncio.create_task(self._remove(container_id, container))
        try:
            await asyncio.shield(removing)
        except asyncio.CancelledError:
            await asyncio.wait([removing], timeout=_DEADLINE_S)  # nobody would come back for the other half
            raise

    async def _remove(self, container_id: str, container: _Container) -> None:
        if container.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(container.process.pid, signal.SIGKILL)
            async with asyncio.timeout(_DEADLINE_S):
                await container.process.wait()
        # The pipes' ends come after the process's own, with the last of its descendants.
        tasks = [task for task in (container.drain, container.pump) if task is not None]
        for channel in container.channels:
            channel.close()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_DEADLINE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, container.working_dir, True)
        self._tell(container_id, ContainerChange.REMOVED)

    async def list_records(self) -> list[ContainerRecord]:
        """Lists the guests of this object; others cannot be seen."""
        return [
            ContainerRecord(container_id, _labels(container), _runs(container), container.paused)
            for container_id, container in self._containers.items()
            if LABEL_ID in container.plan.labels
        ]

    @contextlib.asynccontextmanager
    async def events(self, since_ns: int = 0) -> AsyncIterator[AsyncIterator[ContainerEvent]]:
        """Tells what this object is asked to do, and the ends of its child processes."""
        listener: asyncio.Queue[ContainerEvent] = asyncio.Queue(_EVENTS_MOST)
        self._listeners.append(listener)
        try:
            yield _events(listener)
        finally:
            self._listeners.remove(listener)

    def _tell(self, container_id: str, change: ContainerChange) -> None:
        for listener in self._listeners:
            if listener.full():  # as engines do, it forgets
                listener.get_nowait()
            listener.put_nowait(ContainerEvent(container_id, change, time.time_ns()))

    def counters(self, container_id: str) -> Counters | None:
        """There is no control group."""
        return None

    def usage(self, container_id: str) -> ResourceUsage | None:
        """There is no control group."""
        return None

    async def close(self) -> None:
        """Kills what is left, since nobody could find it again."""
        for container_id in list(self._containers):
            await self.remove(container_id)
        if self._base is not None:
            await asyncio.to_thread(shutil.rmtree, self._base, True)
            self._base = None


async def _events(listener: asyncio.Queue[ContainerEvent]) -> AsyncIterator[ContainerEvent]:
    while True:
        yield await listener.get()


def _tree(container: _Container) -> list[int]:
    """The child process and all below it, parents first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.name))
    found = [container.process.pid] if container.process is not None else []
    for pid in found:
        found += parents.get(pid, [])
    return found


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _runs(container: _Container) -> bool:
    return container.process is not None and container.process.returncode is None


def _limits(spec: SandboxSpec) -> tuple[int, float, int]:
    return spec.memory_limit_bytes, spec.cpu_limit, spec.pids_limit


def _labels(container: _Container) -> Mapping[str, str]:
    return dict(container.plan.labels)
