"""A Docker engine of a test's own, which may be killed, frozen, cut off and filled without harm to any other.

It has namespaces of its own for processes, mounts and the network, so that nothing of it can stay: when the first
process of its process namespace is killed, engine, shims and containers go with it, and their mounts after them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiodocker

from tests.conftest import DEFAULT_IMAGE
from tests.integration.failures.ground import LOOK_EVERY_S, until

START_S = 120.0
FIRST_UID = 1_000_000
DATA_MIB = 700
GROUPS = Path("/sys/fs/cgroup")


class PrivateEngine:
    """One engine, as root. Use `private_engine`."""

    def __init__(self, folder: Path, holder: int, *, remapped: bool = False, filter_file: Path | None = None) -> None:
        self.folder, self._holder = folder, holder
        self.remapped = remapped
        """Whether user ids in its containers begin at `FIRST_UID` on the host."""
        self._filter_file = filter_file
        self.live_restore = False
        """Whether containers live on without it. Counts from its next start on."""
        self.socket = folder / "docker.sock"
        self.url = f"unix://{self.socket}"
        self.data = folder / "data"
        self._log = folder / "dockerd.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._containers: set[str] = set()

    # -- what may be done to it

    async def start(self) -> float:
        """Starts it and waits until it answers; returns the seconds that this took."""
        begun = time.monotonic()
        process = self._launch()
        while not await self._answers():
            assert process.poll() is None, f"the engine does not start:\n{self.said()}"
            assert time.monotonic() - begun < START_S, f"the engine does not answer:\n{self.said()}"
            await asyncio.sleep(LOOK_EVERY_S)
        return time.monotonic() - begun

    def _launch(self) -> subprocess.Popen[bytes]:
        # One that was killed leaves them behind, and in this process namespace the numbers are given out anew.
        for stale in (self.folder / "docker.pid", self.folder / "exec" / "containerd" / "containerd.pid"):
            stale.unlink(missing_ok=True)
        command = [
            *("nsenter", f"--target={self._holder}", "--pid", "--mount", "--net", "dockerd"),
            f"--host={self.url}",
            *(f"--data-root={self.data}", f"--exec-root={self.folder / 'exec'}"),
            *(f"--pidfile={self.folder / 'docker.pid'}", f"--config-file={self.folder / 'daemon.json'}"),
            # With --bridge=none an engine deletes the bridge of its network namespace: this one's has none.
            *("--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"),
            "--exec-opt=native.cgroupdriver=cgroupfs",
            f"--live-restore={str(self.live_restore).lower()}",
            *(["--userns-remap=nobody:nogroup"] if self.remapped else []),
            *([f"--seccomp-profile={self._filter_file}"] if self._filter_file else []),
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        return self._process

    async def _answers(self) -> bool:
        with suppress(aiodocker.DockerError, OSError, TimeoutError):
            async with aiodocker.Docker(self.url) as docker, asyncio.timeout(2):
                await docker.version()
                return True
        return False

    async def kill(self) -> None:
        """Kills it without a word."""
        self._signal(signal.SIGKILL)
        await self._ended()

    async def stop(self) -> None:
        """Asks it to end, as a service manager does, and waits for that."""
        self._signal(signal.SIGTERM)
        await self._ended()

    async def restart(self) -> None:
        """Ends it properly and starts it again."""
        await self.stop()
        await self.start()

    def freeze(self) -> None:
        """Lets it do nothing, while its socket stays open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        self._signal(signal.SIGCONT)
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)  # nsenter stops together with its child

    def hide(self) -> None:
        """Takes its socket away."""
        self.socket.rename(self.folder / "hidden.sock")

    def show(self) -> None:
        """Puts its socket back."""
        (self.folder / "hidden.sock").rename(self.socket)

    def map_users(self) -> None:
        """Gives it ranges of ids that no other program of the machine sees. Before its first start."""
        self.folder.chmod(0o711)  # the mapped root has to get to its data
        for name in ("subuid", "subgid"):
            (self.folder / name).write_text(f"nobody:{FIRST_UID}:65536\n")
            self.in_its_mounts("mount", "--bind", str(self.folder / name), f"/etc/{name}")

    def in_its_mounts(self, *command: str) -> None:
        """Runs a command that sees what it sees."""
        subprocess.run(["nsenter", f"--target={self._holder}", "--mount", *command], check=True, capture_output=True)

    async def containers(self) -> list[str]:
        """The ids of all its containers."""
        async with aiodocker.Docker(self.url) as docker:
            found = [container.id for container in await docker.containers.list(all=True)]
        self._containers.update(found)
        return found

    async def load(self) -> None:
        """Gives it the default image of the engine that the tests use."""
        async with aiodocker.Docker(self.url) as docker:
            images = {tag for image in await docker.images.list() for tag in image["RepoTags"] or ()}
        if DEFAULT_IMAGE in images:
            return
        async with aiodocker.Docker() as source, aiodocker.Docker(self.url) as target:
            async with source.images.export_image(DEFAULT_IMAGE) as archive:
                with (self.folder / "image.tar").open("w+b") as file:
                    async for chunk in archive.iter_chunked(1024 * 1024):
                        file.write(chunk)
                    file.seek(0)
                    await target.images.import_image(file)
            (self.folder / "image.tar").unlink()

    def said(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        os.kill(int(children[0]), number)

    async def _ended(self) -> None:
        process = self._process
        assert process is not None
        await until(lambda: process.poll() is not None, "the end of the engine")

    # -- the end

    def remove(self) -> None:
        """Ends it with everything that it started, and removes what it wrote."""
        listed = subprocess.run(
            ["nsenter", f"--target={self._holder}", "--mount", "ls", str(self.data / "containers")],
            check=False,
            capture_output=True,
            text=True,
        )
        mine = self._containers.union(listed.stdout.split())
        with suppress(ProcessLookupError):
            os.kill(self._holder, signal.SIGKILL)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        _again(lambda: not _processes_of(self.folder), "the end of the engine's processes")
        _again(lambda: _without_groups(mine), "control groups without processes")
        shutil.rmtree(self.folder)


@asynccontextmanager
async def private_engine(*, remapped: bool = False, filter_file: Path | None = None) -> AsyncIterator[PrivateEngine]:
    """An engine that runs and has the default image on a small disk in memory; nothing of it stays.

    A ``remapped`` one runs containers in user namespaces. ``filter_file`` replaces its own filter of system calls.
    """
    folder = Path(tempfile.mkdtemp(prefix="pe", dir="/tmp"))
    holder = _namespaces()
    try:
        first = await until(lambda: _first_child(holder.pid), "a process namespace")
        engine = PrivateEngine(folder, first, remapped=remapped, filter_file=filter_file)
        (folder / "daemon.json").write_text("{}")
        engine.data.mkdir()
        try:
            options = f"size={DATA_MIB}m,mode=0711"
            engine.in_its_mounts("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(engine.data))
            if remapped:
                engine.map_users()
            await engine.start()
            await engine.load()
            yield engine
        finally:
            engine.remove()
    finally:
        holder.kill()
        holder.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _namespaces() -> subprocess.Popen[bytes]:
    """Starts a process whose child holds namespaces; they end with it, and it ends with this process."""
    return subprocess.Popen(
        [
            "setpriv",
            "--pdeathsig=KILL",
            "unshare",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--mount-proc",
            "--net",
            "sleep",
            "infinity",
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _first_child(pid: int) -> int:
    """The process that has the new namespaces, once they are ready."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if not children:
        return 0
    command = Path(f"/proc/{children[0]}/cmdline").read_bytes()
    return int(children[0]) if command.startswith(b"sleep") else 0


def _processes_of(folder: Path) -> list[int]:
    mark, found = str(folder).encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (entry / "cmdline").read_bytes() and b"dockerd" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def _without_groups(containers: set[str]) -> bool:
    """Removes the control groups that killed shims leave behind; whether none is left."""
    found = [Path(path) for path, folders, _ in os.walk(GROUPS) if os.path.basename(path) in containers]
    for group in found:
        for path, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):  # its processes are still ending
                Path(path).rmdir()
    return not any(group.exists() for group in found)


def _again(look: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_S
    while not look():
        assert time.monotonic() < deadline, f"not within {START_S:g} s: {what}"
        time.sleep(LOOK_EVERY_S)
