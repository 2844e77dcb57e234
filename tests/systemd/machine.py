"""A machine that systemd runs: a container with systemd as PID 1, without a network, that may use the host's engine."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import aiodocker

from tests.conftest import DEFAULT_IMAGE

ROOT = Path(__file__).parents[2]
IMAGE = "ms-enclave/systemd:12"
SERVICE = "enclaved.service"
PATIENCE_S = 180.0
DROPIN = f"/etc/systemd/system/{SERVICE}.d/test.conf"


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    output: str
    """Standard output and standard error as they came."""


class Machine:
    """Runs commands on the machine."""

    def __init__(self, docker: aiodocker.Docker, container: Any, state_dir: str) -> None:
        self._docker, self._container, self.state_dir = docker, container, state_dir
        self.at_first: tuple[set[str], str] = (set(), "")
        """The files and the accounts before anything was installed."""

    async def run(self, *command: str, user: str = "root") -> Done:
        """Runs a command to its end."""
        async with asyncio.timeout(PATIENCE_S), self.running(*command, user=user) as program:
            return await program.ended()

    async def ok(self, *command: str, user: str = "root") -> str:
        """Runs a command that must succeed; returns what it wrote."""
        done = await self.run(*command, user=user)
        assert done.code == 0, f"{shlex.join(command)} ended with {done.code}:\n{done.output}\n{await self.journal()}"
        return done.output

    @asynccontextmanager
    async def running(self, *command: str, user: str = "root") -> AsyncIterator[Program]:
        """Runs a command beside the block."""
        execution = await self._container.exec(list(command), user=user, stdout=True, stderr=True)
        async with execution.start(detach=False) as stream:
            yield Program(execution, stream)

    async def write(self, path: str, text: str) -> None:
        """Writes a file and makes its folder."""
        await self.ok("sh", "-c", 'mkdir -p "$(dirname "$0")" && printf %s "$1" > "$0"', path, text)

    async def show(self, name: str) -> str:
        """Reads a property of the service."""
        return (await self.ok("systemctl", "show", "--value", f"--property={name}", SERVICE)).strip()

    async def until(self, name: str, wanted: str, *, other_than: bool = False) -> str:
        """Waits until a property of the service is as wanted (or is something else)."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = await self.show(name)
                if (found == wanted) is not other_than:
                    return found

    async def journal(self, *arguments: str) -> str:
        """The log of the service."""
        return (await self.run("journalctl", "--no-pager", "--output=cat", f"--unit={SERVICE}", *arguments)).output

    async def install(self, wheels: str) -> str:
        """Runs scripts/install-service with wheels that the machine was given."""
        return await self.ok("/src/scripts/install-service", "--wheels", wheels)

    async def client(self, code: str, *, user: str = "alice") -> Done:
        """Runs Python code with the SDK at the service's socket."""
        return await self.run(*client(code), user=user)

    async def get(self, path: str) -> str:
        """Asks the metrics endpoint; the first line is the status."""
        code = (
            "import sys, urllib.error, urllib.request\n"
            "try: answer = urllib.request.urlopen('http://127.0.0.1:9464' + sys.argv[1])\n"
            "except urllib.error.HTTPError as error: answer = error\n"
            "print(answer.status); print(answer.read().decode())"
        )
        return await self.ok("python3", "-c", code, path)

    async def until_metric(self, name: str, *, at_least: float) -> None:
        """Waits until the sum of a metric is so large."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                lines = [line for line in (await self.get("/metrics")).splitlines() if line.startswith(f"{name}{{")]
                if sum(float(line.rpartition(" ")[2]) for line in lines) >= at_least:
                    return

    async def sandboxes(self) -> list[str]:
        """The containers on the engine that belong to this machine's daemon."""
        containers = await self._docker.containers.list(all=True, filters={"label": ["enclaved.id"]})
        ours = f"{self.state_dir}/"
        return [c.id for c in containers if any(str(m.get("Source", "")).startswith(ours) for m in c["Mounts"])]

    async def until_clean(self) -> None:
        """Waits until the daemon has no container left."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.sandboxes():
                pass

    async def accounts(self) -> str:
        """All users and groups."""
        return await self.ok("cat", "/etc/passwd", "/etc/group")

    async def files(self) -> set[str]:
        """Every file, but for what changes by itself, and what is the host's."""
        others = ("/proc", "/sys", "/dev", "/run/systemd", "/tmp", "/var/tmp", "/src", "/wheels")
        skipped = " -o ".join(f"-path {path}" for path in others)
        listed = await self.ok("sh", "-c", rf"find / \( {skipped} -o -path '*/journal/*' \) -prune -o -print")
        return set(listed.splitlines())


class Program:
    """A command that runs on the machine."""

    def __init__(self, execution: Any, stream: Any) -> None:
        self._execution, self._stream = execution, stream
        self._output = b""

    async def said(self, text: str) -> None:
        """Waits until it wrote a text."""
        async with asyncio.timeout(PATIENCE_S):
            while text.encode() not in self._output:
                message = await self._stream.read_out()
                assert message is not None, f"it ended without {text!r}: {self._output.decode()}"
                self._output += message.data

    async def ended(self) -> Done:
        """Waits for the end."""
        while (message := await self._stream.read_out()) is not None:
            self._output += message.data
        return Done(int((await self._execution.inspect())["ExitCode"]), self._output.decode())


def client(code: str) -> tuple[str, ...]:
    """The command line of a program that uses the SDK at the service's socket."""
    return ("env", "MS_ENCLAVE_ADDRESS=unix:/run/enclaved/enclaved.sock", "/opt/ms-enclave/bin/python", "-uc", code)


@asynccontextmanager
async def machine(wheels: Path) -> AsyncIterator[Machine]:
    """Starts a machine and waits until it is up. At the end nothing of it is left on the engine or the host.

    The engine must see the daemon's files under the same paths, so the state directory has a name of its own and is
    mounted from the host; a drop-in tells the unit. Otherwise everything is as it is shipped.
    """
    name = f"enclaved-test-{token_hex(4)}"
    state_dir = f"/var/lib/{name}"
    docker = aiodocker.Docker()
    info = await docker.system.info()
    on_v1 = info.get("CgroupVersion", "1") == "1"
    body = {
        "Image": IMAGE,
        "HostConfig": {
            "Binds": [
                f"{engine_socket()}:/run/docker.sock",
                f"{state_dir}:{state_dir}",
                f"{ROOT}:/src:ro",
                f"{wheels}:/wheels:ro",
            ],
            "CapAdd": ["SYS_ADMIN"],
            "CgroupnsMode": "private",
            "NetworkMode": "none",
            # Over version 1 systemd mounts control groups of its own where it finds none.
            "Tmpfs": {"/run": "", "/run/lock": "", "/tmp": "exec"} | ({"/sys/fs/cgroup": ""} if on_v1 else {}),
        },
    }
    container = await docker.containers.create(body, name=name)
    found = Machine(docker, container, state_dir)
    try:
        await container.start()
        await found.run("sh", "-c", "until test -S /run/systemd/private; do sleep 0.1; done")
        await found.ok("systemctl", "is-system-running", "--wait")
        await found.ok("sh", "-c", "groupadd --non-unique --gid $(stat -c %g /run/docker.sock) docker")
        await found.ok("useradd", "--create-home", "alice")
        await found.ok("useradd", "--create-home", "mallory")
        found.at_first = (await found.files(), await found.accounts())
        yield found
    finally:
        left = await found.sandboxes()
        for container_id in [*left, container.id]:
            await docker.containers.container(container_id).delete(force=True, v=True)
        await remove_from_host(docker, name)
        await docker.close()
    assert left == []


def engine_socket() -> str:
    """The socket of the engine that the tests use."""
    address = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    assert address.startswith("unix://"), f"the machine needs the engine's socket, and DOCKER_HOST is {address}"
    return address.removeprefix("unix://")


async def remove_from_host(docker: aiodocker.Docker, name: str) -> None:
    """Removes the state directory, which belongs to a user of the machine and which the engine made as root."""
    body = {
        "Image": DEFAULT_IMAGE,
        "Cmd": ["rm", "-rf", f"/host/{name}"],
        "HostConfig": {"Binds": ["/var/lib:/host"], "NetworkMode": "none"},
    }
    container = await docker.containers.run(body)
    await container.wait()
    await container.delete()
