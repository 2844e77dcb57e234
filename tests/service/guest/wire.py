"""A real guest, PID 1 of its namespace, to which a test speaks frames itself, without a daemon between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enclaved.agent.guest.frames import FrameDecoder, encode_frame
from enclaved.agent.guest.journal import cost_bytes
from enclaved.agent.guest.limits import MAX_PAYLOAD_BYTES
from enclaved.agent.install import install_guest
from enclaved.runtime.base import GuestSettings, guest_argv
from tests.service.guest.laboratory import PATIENCE_S

Header = dict[str, Any]

UID = 61234
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp"}
CREDIT_BYTES = 2 * MAX_PAYLOAD_BYTES


@dataclass
class Run:
    """What the guest said of one execution, and what its readers got of it."""

    name: str
    frames: deque[Header] = field(default_factory=lambda: deque(maxlen=1000))
    latest: dict[str, Header] = field(default_factory=dict)
    """The latest frame of each type, also where many came after it."""
    chunks: list[tuple[Header, bytes]] = field(default_factory=list)
    keeps_chunks: bool = True
    auto_credit: bool = True
    follows: bool = False
    """Whether the guest tells its first reader the end, after all of its output."""

    @property
    def finished(self) -> Header | None:
        return self.last("finished")

    def last(self, kind: str) -> Header | None:
        """The latest frame of a type."""
        return self.latest.get(kind)

    def add(self, header: Header) -> None:
        """Takes what the guest said of it."""
        self.frames.append(header)
        self.latest[header["type"]] = header

    def output(self, channel: int = 1, *, reader: int = 1) -> bytes:
        """All output of a channel that a reader got."""
        wanted = (reader, channel)
        return b"".join(data for header, data in self.chunks if (header["reader"], header["channel"]) == wanted)

    @property
    def screen(self) -> str:
        """What its terminal got."""
        return self.output(3).decode("utf-8", "replace")


class WireGuest:
    """The other end of a guest's connection."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.working_dir = folder / "work"
        self.process: Process | None = None
        self.runs: dict[str, Run] = {}
        self.frames: deque[Header] = deque(maxlen=1000)
        self.greeting: list[Header] = []
        self.connections = 0
        self._writer: asyncio.StreamWriter | None = None
        self._news = asyncio.Condition()
        self._open_connections = 0

    # -- frames

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes in what the guest says on one connection."""
        decoder = FrameDecoder()
        self._writer, self.greeting = writer, []
        self._open_connections += 1
        try:
            while data := await reader.read(256 * 1024):
                for header, payload in decoder.feed(data):
                    self._take(header, payload)
                async with self._news:
                    self._news.notify_all()
        except ConnectionError:  # it was killed with something unread
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._open_connections -= 1
            async with self._news:
                self._news.notify_all()

    async def closed(self) -> None:
        """Waits until no connection is open."""
        await self.until(lambda: not self._open_connections)

    def _take(self, header: Header, payload: bytes) -> None:
        if header["type"] == "ready":
            self.connections += 1
        self.greeting.append(header)
        run = self.runs.get(header.get("execution", ""))
        if run is None:
            self.frames.append(header)
        elif header["type"] == "output":
            if run.keeps_chunks:
                run.chunks.append((header, payload))
            if run.auto_credit:
                self.send("credit", execution=run.name, reader=header["reader"], bytes=cost_bytes(payload))
        else:
            run.add(header)
            run.follows = run.follows or header["type"] == "subscribed"

    def send(self, kind: str, payload: bytes = b"", **fields: Any) -> None:
        """Sends a frame."""
        assert self._writer is not None
        self._writer.write(encode_frame({"type": kind, **fields}, payload))

    async def until(self, happened: Callable[[], object], seconds: float = PATIENCE_S) -> None:
        """Waits for what the guest says."""
        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(lambda: bool(happened()))

    async def ping(self) -> None:
        """Waits until the guest has done all that it was told."""
        self.frames.clear()
        self.send("ping", number=1)
        await self.until(lambda: any(frame["type"] == "pong" for frame in self.frames))

    async def drop(self) -> None:
        """Loses the connection, as a daemon that dies, and waits for the next one."""
        assert self._writer is not None
        before = self.connections
        self._writer.transport.abort()
        for run in self.runs.values():
            run.follows = False
        await self.until(lambda: self.connections > before)

    # -- executions

    def start(self, job: dict[str, Any], *, context: str | None = None, follow: bool = True, **fields: Any) -> Run:
        """Starts an execution, by default with a reader that always has credit."""
        run = self.runs[f"e{len(self.runs)}"] = Run(f"e{len(self.runs)}")
        document = json.dumps({"env": ENV, **job}).encode()
        header: Header = {
            "timeout_s": 60.0,
            "stdin": False,
            "merge_stderr": False,
            "output_limit_bytes": None,
            **fields,
        }
        if follow:
            run.follows = True
            header["subscribe"] = {"reader": 1, "offsets": {}, "credit_bytes": CREDIT_BYTES}
        assert len(document) <= MAX_PAYLOAD_BYTES
        self.send("run", document, execution=run.name, context=context, job_bytes=len(document), **header)
        return run

    def shell(self, command: str, **fields: Any) -> Run:
        """Starts a shell command."""
        return self.start({"kind": "command", "argv": [], "shell": command}, **fields)

    def command(self, *argv: str, **fields: Any) -> Run:
        """Starts a command."""
        return self.start({"kind": "command", "argv": list(argv), "shell": None}, **fields)

    def python(self, code: str, **fields: Any) -> Run:
        """Starts Python in an interpreter of its own, or in a context if one is named."""
        return self.start({"kind": "python", "code": code}, **fields)

    def follow(self, run: Run, reader: int, *, credit_bytes: int = CREDIT_BYTES, **offsets: int) -> None:
        """Adds a reader. Offsets are given as ``c1=...``."""
        places = {name[1:]: offset for name, offset in offsets.items()}
        self.send("subscribe", execution=run.name, reader=reader, offsets=places, credit_bytes=credit_bytes)

    def type(self, run: Run, text: str, offset: int) -> int:
        """Sends input, and returns the offset of what comes next."""
        data = text.encode()
        self.send("stdin", data, execution=run.name, offset=offset)
        return offset + len(data)

    async def end(self, run: Run) -> Header:
        """Waits for the end of an execution, and of what its first reader gets."""
        await self.until(lambda: run.finished is not None and (run.last("end") or not run.follows))
        assert run.finished is not None
        return run.finished

    async def shown(self, run: Run, text: str) -> None:
        """Waits until a text is on a terminal."""
        await self.until(lambda: text in run.screen)

    async def written(self, run: Run, data: bytes) -> None:
        """Waits until a program has written something to its standard output."""
        await self.until(lambda: data in run.output())

    # -- the sandbox

    async def processes(self) -> set[str]:
        """The command lines of the user's processes, but for our own."""
        run = self.command("/bin/sh", "-c", 'for p in /proc/[0-9]*; do tr "\\0" " " < $p/cmdline; echo; done')
        await self.end(run)
        lines = {line.strip() for line in run.output().decode().splitlines()}
        return {line for line in lines if line and "_ms_enclave_guest" not in line and "/proc/" not in line}

    def guest_pid(self) -> int:
        """The guest's process id on this machine."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def memory_bytes(self) -> int:
        """What the guest itself keeps in memory."""
        for line in Path(f"/proc/{self.guest_pid()}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no memory")


@asynccontextmanager
async def wire_guest(uid: int = UID, change: Callable[[str], str] = lambda source: source) -> AsyncIterator[WireGuest]:
    """Starts a guest, with its source changed first, and takes it down with all that runs in it."""
    folder = Path(tempfile.mkdtemp(prefix="wire", dir="/tmp"))
    folder.chmod(0o711)
    guest = WireGuest(folder)
    guest.working_dir.mkdir(mode=0o700)
    os.chown(guest.working_dir, UID, UID)
    settings = GuestSettings(
        sandbox_id="s",
        uid=uid,
        working_dir=str(guest.working_dir),
        expires_in_s=600.0,
        daemon_absence_s=30.0,
        memory_limit_bytes=0,
    )
    socket_path = folder / "agent.sock"
    guest_file = install_guest(folder / "guest")
    changed = change(guest_file.read_text())
    guest_file.unlink()
    guest_file.write_text(changed)
    guest_file.chmod(0o444)
    server = await asyncio.start_unix_server(guest.serve, socket_path)
    argv = guest_argv("/usr/bin/python3", str(guest_file), str(socket_path), settings, "--container")
    guest.process = await asyncio.create_subprocess_exec(
        *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"),
        *argv,
        stdin=DEVNULL,
        stdout=DEVNULL,
        start_new_session=True,
        cwd="/",
        env={},
    )
    try:
        await guest.until(lambda: guest.connections)
        yield guest
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guest.process.pid, signal.SIGKILL)
        await guest.process.wait()
        server.close()
        await guest.closed()
        shutil.rmtree(folder)
