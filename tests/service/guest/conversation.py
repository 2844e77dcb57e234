"""A real guest, and a daemon that says exactly what a test says."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enclaved.agent.guest.frames import FrameDecoder, encode_frame
from enclaved.agent.install import install_guest
from enclaved.runtime.base import GuestSettings, guest_argv

PATIENCE_S = 30.0
UID = 64321

Header = dict[str, Any]


@dataclass
class Conversation:
    """The connection to one guest. What it says is kept until a test asks for it."""

    listener: socket.socket
    process: subprocess.Popen[bytes]
    connection: socket.socket = field(default_factory=socket.socket)
    decoder: FrameDecoder = field(default_factory=FrameDecoder)
    frames: list[tuple[Header, bytes]] = field(default_factory=list)
    count: int = 0

    def accept(self) -> None:
        """Waits for the guest to connect, and for what it holds."""
        self.connection.close()
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(PATIENCE_S)
        self.decoder = FrameDecoder()
        self.frames.clear()
        self.expect("ready")

    def send(self, kind: str, payload: bytes = b"", **fields: Any) -> None:
        """Sends one frame."""
        self.connection.sendall(encode_frame({"type": kind, **fields}, payload))

    def expect(self, kind: str, wanted: Callable[[Header], bool] = lambda header: True) -> Header:
        """Waits for a frame and takes it out of what has come; others stay."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for index, (header, _) in enumerate(self.frames):
                if header["type"] == kind and wanted(header):
                    return self.frames.pop(index)[0]
            assert time.monotonic() < deadline, (kind, self.frames)
            self.receive()

    def receive(self) -> None:
        """Takes in what comes next."""
        data = self.connection.recv(65536)
        assert data, "the guest is gone"
        self.frames += self.decoder.feed(data)

    def said(self, kind: str) -> list[Header]:
        """What has come of a kind up to now, after everything that the guest was told before."""
        self.count += 1
        number = self.count
        self.send("ping", number=number)
        self.expect("pong", lambda header: header["number"] == number)
        return [header for header, _ in self.frames if header["type"] == kind]

    def ask(self, kind: str, **fields: Any) -> Header:
        """Asks what is answered with its number."""
        number = self.order(kind, **fields)
        return self.answer(number)

    def order(self, kind: str, **fields: Any) -> int:
        """Asks, and does not wait for the answer."""
        self.count += 1
        self.send(kind, number=self.count, **fields)
        return self.count

    def answer(self, number: int) -> Header:
        """Waits for an answer by its number."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for index, (header, _) in enumerate(self.frames):
                if header.get("number") == number:
                    return self.frames.pop(index)[0]
            assert time.monotonic() < deadline, (number, self.frames)
            self.receive()

    def run(self, execution: str, job: Mapping[str, Any], *, context: str | None = None, **options: Any) -> None:
        """Starts an execution whose output nobody reads."""
        text = json.dumps({"env": {"PATH": "/usr/bin:/bin"}, **job}).encode()
        fields = {"context": context, "timeout_s": 0, "job_bytes": len(text), "subscribe": None, **options}
        self.send("run", text, execution=execution, **fields)

    def python(self, execution: str, code: str, context: str | None = "default", **options: Any) -> None:
        """Starts Python in a context, or in a process of its own."""
        self.run(execution, {"kind": "python", "code": code}, context=context, **options)

    def shell(self, execution: str, command: str, **options: Any) -> None:
        """Starts a command."""
        self.run(execution, {"kind": "command", "shell": command, "argv": []}, **options)

    def follow(self, execution: str) -> None:
        """Subscribes to all of the output."""
        self.send("subscribe", execution=execution, reader=1, offsets={}, credit_bytes=2**30)

    def output_of(self, execution: str, size: int) -> bytes:
        """Waits for so many bytes of output, of both channels, of an execution that is followed."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            chunks = [
                payload
                for header, payload in self.frames
                if header["type"] == "output" and header["execution"] == execution
            ]
            if len(b"".join(chunks)) >= size:
                return b"".join(chunks)
            assert time.monotonic() < deadline, self.frames
            self.receive()

    def finished(self, execution: str) -> Header:
        """Waits for the end of an execution."""
        return self.expect("finished", lambda header: header["execution"] == execution)

    def result(self, code: str) -> Any:
        """What Python in a process of its own prints, as JSON."""
        self.count += 1
        name = f"result-{self.count}"
        self.python(name, "import json\n" + code, context=None)
        self.follow(name)
        self.expect("end", lambda header: header["execution"] == name)
        finished = self.finished(name)
        output = self.output_of(name, sum(finished["bytes_total"].values()))
        assert finished["exit_code"] == 0, output
        return json.loads(output)

    def user_processes(self) -> dict[int, str]:
        """The processes of the sandbox's user and their command lines, as the host sees them. Zombies do not count."""
        found = {}
        for pid in self.descendants():
            with contextlib.suppress(OSError):
                status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                if int(status["Uid"].split()[0]) == UID and status["State"][0] not in "ZX":
                    found[pid] = Path(f"/proc/{pid}/cmdline").read_text()
        return found

    def descendants(self) -> list[int]:
        """All processes of the sandbox, as the host numbers them."""
        waiting, found = [self.process.pid], []
        while waiting:
            pid = waiting.pop()
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    children = [int(child) for child in (task / "children").read_text().split()]
                    found += children
                    waiting += children
        return found


@contextlib.contextmanager
def conversation(**settings: Any) -> Iterator[Conversation]:
    """Starts a guest in a PID namespace of its own, and ends it with all that runs in it."""
    folder = Path(tempfile.mkdtemp(prefix="talk", dir="/tmp"))
    folder.chmod(0o711)
    work = folder / "work"
    work.mkdir(mode=0o700)
    os.chown(work, UID, UID)
    chosen = {
        "scratch_dirs": (),
        "owns_mounts": False,
        "daemon_absence_s": 30.0,
        "expires_in_s": 600.0,
        "memory_limit_bytes": 2**30,
        **settings,
    }
    made = GuestSettings(sandbox_id="s", uid=UID, working_dir=str(work), **chosen)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder)
        listener = cleanup.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(folder / "s"))
        listener.listen()
        listener.settimeout(PATIENCE_S)
        guest_file = install_guest(folder / "guest")
        argv = guest_argv("/usr/bin/python3", str(guest_file), str(folder / "s"), made, "--container")
        unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
        process = subprocess.Popen([*unshare, *argv], stdin=subprocess.DEVNULL, start_new_session=True, env={}, cwd="/")
        wire = Conversation(listener, process)
        try:
            wire.accept()
            yield wire
        finally:
            wire.connection.close()
            for pid in wire.descendants()[:1]:  # the guest; with it goes its namespace
                os.kill(pid, signal.SIGKILL)
            process.wait(PATIENCE_S)
