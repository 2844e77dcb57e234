"""A directory of a test's own, the daemons and programs that it starts there, and the certainty that nothing stays."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from grpc import aio
from ms_enclave.v1 import execution_service_pb2_grpc as execution_grpc
from ms_enclave.v1 import file_service_pb2_grpc as file_grpc
from ms_enclave.v1 import sandbox_service_pb2_grpc as sandbox_grpc
from ms_enclave.v1 import system_service_pb2_grpc as system_grpc
from ms_enclave.v1 import tool_service_pb2_grpc as tool_grpc

from tests.scripts.loading import load

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 120.0
"""A limit for what never comes: a daemon on a busy machine may take half a minute to start."""
LOOK_EVERY_S = 0.02
FAULTS_OF_OURS = ("fault of ours", "background task failed", "Traceback", "never retrieved", "never awaited", "Fatal")
"""What stands in the log of a daemon that something went wrong with which nobody had thought of."""

T = TypeVar("T")


async def until(look: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
    """Looks again and again until what it sees is true, and returns that. Fails after ``patience_s``."""
    deadline = time.monotonic() + patience_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {patience_s:g} s: {what}"
        await asyncio.sleep(LOOK_EVERY_S)
    return seen


class Program:
    """A process that a test started, with everything that it wrote in a file. Its input is empty and does not end."""

    def __init__(
        self, command: Sequence[str | Path], output: Path, environment: Mapping[str, str], **options: Any
    ) -> None:
        self._output = output
        with output.open("ab") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment, cwd="/", **options
            )

    @property
    def text(self) -> str:
        """What it wrote so far."""
        return self._output.read_text(errors="replace") if self._output.is_file() else ""

    async def says(self, words: str) -> None:
        """Waits until it wrote this. Fails if it ends without."""

        def look() -> bool:
            ended = self.process.poll() is not None  # before the look at the text, which is then complete
            said = words in self.text
            assert said or not ended, f"it ended without saying {words!r}:\n{self.text}"
            return said

        await until(look, f"{words!r}, but only:\n{self.text}")

    async def ended(self) -> int:
        """Waits for its end and returns its exit code."""
        await until(lambda: self.process.poll() is not None, f"the end of a program that said:\n{self.text}")
        return int(self.process.returncode)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to it alone."""
        self.process.send_signal(number)

    def press_ctrl_c(self) -> None:
        """Interrupts it with everything that it started in its terminal, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def go_on(self) -> None:
        """Lets it go on, if it waits for the end of its input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> None:
        """Ends it however it is, if it has not ended."""
        self.go_on()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class DaemonProcess(Program):
    """``enclaved run`` on a state directory."""

    socket: Path

    @property
    def address(self) -> str:
        """Where it listens, as the SDK and gRPC name it."""
        return f"unix:{self.socket}"

    async def listens(self) -> None:
        """Waits for its socket, for where its log cannot be read."""
        await until(self.socket.exists, "a socket")

    def check_log(self) -> None:
        """Fails if anything went wrong in it with which nobody had thought of."""
        lines = [line for line in self.text.splitlines() if any(fault in line for fault in FAULTS_OF_OURS)]
        assert lines == [], "\n".join(lines)


class Ground:
    """A directory, with a runtime directory for programs with daemons of their own. Call `clear` at the end."""

    def __init__(self) -> None:
        # Short, whatever TMPDIR says, because the paths of sockets lie below it.
        self.folder = Path(tempfile.mkdtemp(prefix="eg", dir="/tmp"))
        self.run_dir = self.folder / "run"
        self.run_dir.mkdir(mode=0o700)
        self._programs: list[Program] = []
        self._mounts: list[Path] = []

    def environment(self, **more: str) -> dict[str, str]:
        """Variables with which programs find both packages and start daemons of their own here."""
        path = os.pathsep.join([str(ROOT), str(ROOT / "sdk_python")])
        own = {"PYTHONPATH": path, "XDG_RUNTIME_DIR": str(self.run_dir), "ENCLAVED_CONFIG": "/dev/null"}
        return {**os.environ, **own, **more}

    async def daemon(self, *flags: str, name: str = "e", state_dir: Path | None = None) -> DaemonProcess:
        """Starts a daemon and waits until it serves. ``name``: its socket, log and state directory."""
        found = self.start_daemon(*flags, name=name, state_dir=state_dir)
        await found.says('"ready"')
        return found

    def start_daemon(
        self, *flags: str, name: str = "e", state_dir: Path | None = None, output: Path | None = None
    ) -> DaemonProcess:
        """Starts a daemon without waiting for it."""
        socket = self.folder / f"{name}.sock"
        command = [
            *(sys.executable, "-P", "-m", "enclaved", "run", "--listen-unix", str(socket), "--listen-metrics", ""),
            *("--state-dir", str(state_dir or self.folder / name), "--log-format", "json", *flags),
        ]
        log = output or self.folder / f"{name}.log"
        if output is None:
            log.write_text("")
        found = DaemonProcess(command, log, self.environment())
        found.socket = socket
        self._programs.append(found)
        return found

    def program(self, code: str, *, name: str = "program", prefix: Sequence[str] = (), **variables: str) -> Program:
        """Starts a Python program, which finds no daemon and starts its own. ``prefix``: a command that starts it."""
        file = self.folder / f"{name}.py"
        file.write_text(f"{_NO_SYSTEM_DAEMON}{code}")
        command = [*prefix, sys.executable, "-P", file]
        output = self.folder / f"{name}.out"
        # A process group of its own, as a terminal makes for each command.
        found = Program(command, output, self.environment(**variables), start_new_session=True)
        self._programs.append(found)
        return found

    def mount_tmpfs(self, name: str, size: str) -> Path:
        """Mounts a small file system, which `clear` unmounts."""
        folder = self.folder / name
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", folder], check=True)
        self._mounts.append(folder)
        return folder

    def containers(self) -> list[str]:
        """Lists the ids of the containers of sandboxes that daemons in this directory made and that are there now.

        Their canaries come and go by themselves, and are left out.
        """
        engine = load("_engine").Engine.from_environment()
        found = load("_suites").run_containers(engine, self.folder)
        return [one.id for one in found if not one.labels.get("enclaved.id", "").startswith("canary-")]

    def embedded_directories(self) -> list[Path]:
        """Lists the directories of daemons that programs started for themselves."""
        return sorted((self.run_dir / "ms-enclave").glob("*"))

    def clear(self) -> None:
        """Ends and removes whatever there still is. Daemons that programs started end by themselves, with a limit."""
        for program in self._programs:
            program.kill()
        deadline = time.monotonic() + PATIENCE_S
        while self._embedded_daemons() and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_S)
        for pid in self._embedded_daemons():
            os.kill(pid, signal.SIGKILL)
        scripts = load("_engine")
        engine = scripts.Engine.from_environment()
        while (containers := self.containers()) and time.monotonic() < deadline:
            for container in containers:
                with suppress(scripts.EngineError):  # somebody else removes it at this moment
                    engine.remove_container(container)
        for folder in self._mounts:
            subprocess.run(["umount", "--lazy", folder], check=True)
        shutil.rmtree(self.folder)

    def _embedded_daemons(self) -> list[int]:
        """The process ids of daemons of programs that run now."""
        locks = (directory / "state" / "lock" for directory in self.embedded_directories())
        pids = [int(lock.read_text() or 0) for lock in locks if lock.exists()]
        return [pid for pid in pids if pid and str(self.run_dir).encode() in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


_NO_SYSTEM_DAEMON = """
from pathlib import Path
from ms_enclave._local import process_daemons
process_daemons()._system_socket = Path("/nonexistent")
"""


class Stubs:
    """All services of a daemon, without the SDK between."""

    def __init__(self, channel: aio.Channel) -> None:
        any_channel: Any = channel
        self.channel = channel
        self.sandboxes: Any = sandbox_grpc.SandboxServiceStub(any_channel)
        self.executions: Any = execution_grpc.ExecutionServiceStub(any_channel)
        self.files: Any = file_grpc.FileServiceStub(any_channel)
        self.tools: Any = tool_grpc.ToolServiceStub(any_channel)
        self.system: Any = system_grpc.SystemServiceStub(any_channel)
