"""A place in which programs run as a user's would: the installed package, an empty directory, a daemon of their own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.docs.notebook import END
from tests.scripts.loading import load

NOTEBOOK = Path(__file__).with_name("notebook.py")
PATIENCE_S = 180.0
SERVES = "ms-enclave serves http://127.0.0.1:8000 "

PRELUDE = """
from ms_enclave.sandbox.boxes import SandboxFactory
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType
config = DockerSandboxConfig(memory_limit="256m")
"""
"""What fragments of pages may take for granted."""
A_SANDBOX = "sandbox = SandboxFactory.create_sandbox(SandboxType.DOCKER, config)\nawait sandbox.start()\n"
A_MANAGER = "manager = LocalSandboxManager()\nawait manager.start()\n"


@dataclass(frozen=True)
class Place:
    """An empty directory, with an environment in which every program starts a daemon of its own."""

    directory: Path
    run_directory: Path

    def environment(self, **more: str) -> dict[str, str]:
        """Returns the variables of programs here: ours, with the commands of our own Python first."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**os.environ, "XDG_RUNTIME_DIR": str(self.run_directory), "PATH": path, **more}

    def run(self, *command: str | Path, stdin: str = "", exit_code: int = 0, **variables: str) -> str:
        """Runs a command to its end and returns what it printed. Fails for another exit code than the one given."""
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment(**variables),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == exit_code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def daemon(
        self,
        *command: str | Path,
        ready: str = '"ready"',
        end: signal.Signals = signal.SIGTERM,
        **variables: str,
    ) -> Iterator[None]:
        """Runs a command that is a daemon, from when it says that it is ready until it has ended on our signal."""
        with subprocess.Popen(
            command, cwd=self.directory, env=self.environment(**variables), stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            try:
                said = []
                for line in process.stderr:
                    said.append(line)
                    if ready in line:
                        break
                assert process.poll() is None, "".join(said)
                yield
            finally:
                process.send_signal(end)
                try:
                    process.communicate(timeout=PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
            assert process.returncode == 0

    def run_program(self, text: str) -> str:
        """Runs a complete Python program."""
        program = self.directory / "program.py"
        program.write_text(text)
        return self.run(sys.executable, program)

    @contextmanager
    def server(self, *command: str | Path) -> Iterator[None]:
        """Runs a command that serves HTTP at port 8000, until Ctrl-C. One at a time on this machine has that port."""
        with alone_at_the_port(), self.daemon(*command, ready=SERVES, end=signal.SIGINT):
            yield

    def server_program(self, text: str) -> AbstractContextManager[None]:
        """Runs a complete Python program that serves HTTP at port 8000, until Ctrl-C."""
        program = self.directory / "server.py"
        program.write_text(text)
        return self.server(sys.executable, program)

    def run_parts(self, parts: Sequence[str]) -> list[str]:
        """Runs parts of a page in one interpreter, as a notebook does, and returns what each of them printed."""
        output = self.run(sys.executable, "-P", NOTEBOOK, stdin=json.dumps(parts))
        return output.split(f"{END}\n")[:-1]

    def containers(self) -> list[str]:
        """Lists the containers that programs of this place left behind."""
        engine = load("_engine").Engine.from_environment()
        return [container.id for container in load("_suites").run_containers(engine, self.run_directory)]


@contextmanager
def alone_at_the_port() -> Iterator[None]:
    """Waits until no test of this machine, whoever runs it, uses the port that the pages name."""
    folder = os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY)  # a lock that leaves no file behind
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def a_place() -> Iterator[Place]:
    """Makes a place. It is an error if a container is left when it goes."""
    with tempfile.TemporaryDirectory(prefix="mse-", ignore_cleanup_errors=True) as folder:
        # Short, because the sockets of daemons lie below it.
        place = Place(Path(folder) / "empty", Path(folder) / "run")
        place.directory.mkdir()
        place.run_directory.mkdir(mode=0o700)
        yield place
        assert place.containers() == []
        shutil.rmtree(place.directory)
