"""The command ``ms-enclave`` and its executions, at a real daemon whose sandboxes are processes of this machine."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
import termios
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.service.daemons import daemon, settings_in, short_directory

PATIENCE_S = 20.0


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Command:
    """The command, at a daemon with a sandbox named "box"."""

    address: str

    async def start(self, *arguments: str, **streams: Any) -> Process:
        environment = {**os.environ, "MS_ENCLAVE_ADDRESS": self.address, "TERM": "xterm"}
        given = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, **streams}
        command = (sys.executable, "-P", "-m", "ms_enclave.cli", *arguments)
        return await asyncio.create_subprocess_exec(*command, env=environment, **given)

    async def run(self, *arguments: str, stdin: bytes = b"") -> Done:
        process = await self.start(*arguments)
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate(stdin)
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())

    async def json(self, *arguments: str) -> Any:
        return json.loads((await self.run(*arguments, "--json")).out)


@dataclass
class Screen:
    """A terminal in our hands, and the command at its other end."""

    fd: int
    theirs: int
    process: Process
    said: bytes = b""

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    async def until(self, words: bytes) -> None:
        loop = asyncio.get_running_loop()
        while words not in self.said:
            ready = asyncio.Event()
            loop.add_reader(self.fd, ready.set)
            try:
                await asyncio.wait_for(ready.wait(), PATIENCE_S)
            except TimeoutError:
                raise AssertionError(f"no {words!r} in {self.said!r}") from None
            finally:
                loop.remove_reader(self.fd)
            self.said += os.read(self.fd, 65536)
        self.said = self.said.partition(words)[2]

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.theirs)[3] & termios.ICANON


@pytest.fixture
async def command() -> AsyncIterator[Command]:
    async with short_directory() as folder:
        settings = settings_in(folder)
        async with daemon(settings) as running:
            await running.create()
            yield Command(f"unix:{settings.listen.unix}")


@pytest.fixture
async def screens(command: Command) -> AsyncIterator[Any]:
    made: list[Screen] = []

    async def screen(*arguments: str) -> Screen:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (17, 71))
        process = await command.start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        made.append(Screen(ours, theirs, process))
        return made[-1]

    yield screen
    for one in made:
        if one.process.returncode is None:
            one.process.kill()
            await one.process.wait()
        os.close(one.fd)
        os.close(one.theirs)


async def test_a_command_runs_as_if_it_ran_here(command: Command) -> None:
    done = await command.run("exec", "-i", "box", "--", "sh", "-c", "sort; echo no >&2; exit 3", stdin=b"b\na\n")
    assert done == Done(3, "a\nb\n", "no\n")
    assert (await command.run("exec", "box", "cat", stdin=b"is not for it")).out == ""
    assert (await command.run("exec", "box", "--", "sh", "-c", "kill -9 $$")).code == 137
    assert (await command.run("exec", "--timeout", "0.3", "box", "sleep", "60")).code == 124


async def test_as_json_the_result_is_one_value(command: Command) -> None:
    done = await command.run("exec", "--json", "box", "--", "sh", "-c", "echo out; exit 4")
    found = json.loads(done.out)
    assert (done.code, found["exit_code"], found["verdict"], found["stdout"]) == (4, 4, "EXITED", "out\n")


async def test_a_detached_command_is_found_again(command: Command) -> None:
    script = "echo begun; read line < /dev/null; sleep 60"
    execution = (await command.run("exec", "-d", "box", "--", "sh", "-c", script)).out.strip()
    (found,) = await command.json("executions", "box")
    assert (found["id"], found["running"], found["detach"]) == (execution, True, True)
    assert execution in (await command.run("executions")).out
    late = await command.run("wait", execution, "--timeout", "0")
    assert (late.code, late.err) == (125, f"ms-enclave: execution {execution} still runs\n")
    following = await command.start("logs", "-f", execution)
    assert following.stdout is not None
    assert await following.stdout.readline() == b"begun\n"
    following.send_signal(signal.SIGINT)
    assert await following.wait() == 0
    assert (await command.run("logs", execution)).out == "begun\n"
    assert (await command.run("signal", execution, "KILL")).code == 0
    assert (await command.run("wait", execution)).code == 137
    assert (await command.run("attach", execution)).out == "begun\n"


@pytest.mark.parametrize("arguments", [("signal", "x", "NOISE"), ("signal", "x", "INT"), ("exec", "box")])
async def test_a_mistake_is_one_line(command: Command, arguments: tuple[str, ...]) -> None:
    done = await command.run(*arguments)
    assert done.code in (1, 2, 125)
    assert done.err.startswith("ms-enclave: ")
    assert done.err.count("\n") == 1


async def test_a_context_keeps_variables_from_command_to_command(command: Command) -> None:
    assert (await command.run("context", "open", "box", "analysis")).out == "analysis\n"
    assert (await command.run("exec", "--context", "analysis", "box", "--", "x = 6 * 7")).code == 0
    assert (await command.run("exec", "--context", "analysis", "box", "--", "print(x)")).out == "42\n"
    assert "analysis" in (await command.run("context", "list", "box")).out
    assert (await command.json("context", "reset", "box", "analysis"))["calls"] == 0
    assert (await command.run("exec", "--context", "analysis", "box", "--", "print(x)")).code == 1
    assert (await command.run("context", "close", "box", "analysis")).out == "analysis\n"
    assert await command.json("context", "list", "box") == []


async def test_ctrl_c_interrupts_a_command_and_then_kills_it(command: Command) -> None:
    script = "trap 'echo caught' INT; echo ready; while :; do sleep 0.05; done"
    process = await command.start("exec", "box", "--", "sh", "-c", script)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert await process.stdout.readline() == b"caught\n"
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(PATIENCE_S):
        assert await process.wait() == 130
    (ended,) = await command.json("executions", "box")
    assert ended["verdict"] == "CANCELLED"


async def test_a_shell_has_our_terminal_until_it_ends(command: Command, screens: Any) -> None:
    screen = await screens("exec", "-it", "box", "--", "sh")
    screen.type(b"stty size; echo re''ady\n")
    await screen.until(b"17 71")
    await screen.until(b"ready")
    assert screen.is_raw
    termios.tcsetwinsize(screen.theirs, (18, 72))
    screen.process.send_signal(signal.SIGWINCH)
    screen.type(b"while [ \"$(stty size)\" != '18 72' ]; do sleep 0.05; done; echo lar''ger\n")
    await screen.until(b"larger")
    screen.type(b"sh -c 'echo a\"\"sleep; exec sleep 60'\n")
    await screen.until(b"asleep")
    screen.type(b"\x03")  # for what runs in the shell
    screen.type(b"exit 5\n")
    assert await screen.ended() == 5
    assert not screen.is_raw


async def test_the_detach_keys_leave_a_program_that_is_attached_to_again(command: Command, screens: Any) -> None:
    screen = await screens("exec", "-it", "box", "--", "sh")
    screen.type(b"x=42; echo re''ady\n")
    await screen.until(b"ready")
    screen.type(b"\x10\x11")
    await screen.until(b"left it running; 'ms-enclave attach ")
    assert await screen.ended() == 0
    assert not screen.is_raw
    (found,) = await command.json("executions", "--running")
    again = await screens("attach", found["id"])
    again.type(b"echo still $x; exit 6\n")
    await again.until(b"still 42")
    assert await again.ended() == 6


async def test_a_terminal_is_given_back_when_the_command_is_ended(command: Command, screens: Any) -> None:
    screen = await screens("exec", "-it", "box", "--", "sh")
    screen.type(b"echo re''ady\n")
    await screen.until(b"ready")
    screen.process.send_signal(signal.SIGTERM)
    assert await screen.ended() == 143
    assert not screen.is_raw
    (ended,) = await command.json("executions", "box")
    assert ended["verdict"] == "CANCELLED"


async def test_what_runs_shows_with_what_it_uses(command: Command) -> None:
    script = "while :; do :; done"
    execution = (await command.run("exec", "-d", "box", "--", "sh", "-c", script)).out.strip()
    (found,) = await command.json("top", "box")
    assert found["execution_id"] == execution
    assert found["cores"] > 0
    assert found["execution"]["pids"] == 1
    assert execution in (await command.run("top", "box")).out
