"""``enclaved run`` as a process: signals, the parent's pipe, systemd, and how it exits."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.service.daemons import PATIENCE_S, short_directory

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    async with short_directory() as folder:
        yield folder


def environment(**more: str) -> dict[str, str]:
    """An environment in which both packages can be imported."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "sdk_python")])
    return {**os.environ, "PYTHONPATH": path, "ENCLAVED_CONFIG": "/dev/null", **more}


def flags(folder: Path) -> list[str]:
    """Flags of a daemon that keeps everything below a directory and has no engine."""
    return [
        *("--listen-unix", f"{folder}/e.sock", "--state-dir", f"{folder}/state", "--listen-metrics", ""),
        *("--engine-url", f"unix://{folder}/none", "--log-format", "json"),
    ]


@asynccontextmanager
async def enclaved(*arguments: str, pass_fds: tuple[int, ...] = (), **more: str) -> AsyncIterator[Process]:
    """Runs the command; kills it if the test leaves it running."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "enclaved", *arguments),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        pass_fds=pass_fds,
        env=environment(**more),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await communicated(process)


async def said(process: Process, text: bytes) -> None:
    """Waits until a line of standard error has this text."""
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE_S):
        while line := await process.stderr.readline():
            if text in line:
                return
    pytest.fail(f"it never said {text!r}")


async def communicated(process: Process) -> tuple[bytes, bytes]:
    """Waits until it ended; returns what it wrote since."""
    async with asyncio.timeout(PATIENCE_S):
        return await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_well(folder: Path, number: signal.Signals):
    async with enclaved("run", *flags(folder)) as process:
        await said(process, b'"event": "ready"')
        process.send_signal(number)
        out, err = await communicated(process)
    assert (process.returncode, out) == (0, b"")
    assert b'"event": "stopped"' in err.splitlines()[-1]
    assert [path.name for path in folder.iterdir()] == ["state"]


async def test_a_hangup_has_it_read_its_configuration_again(folder: Path):
    config = folder / "config.toml"
    config.touch()
    async with enclaved("run", "--config", str(config), *flags(folder)) as process:
        await said(process, b'"event": "ready"')
        config.write_text("[limits]\npids_max = 300\n")
        process.send_signal(signal.SIGHUP)
        await said(process, b'"changed": ["limits.pids_max"]')
        config.write_text("[limits]\npids_max = 0\n")
        process.send_signal(signal.SIGHUP)
        await said(process, b"config.toml, line 2: limits.pids_max must be")
        process.terminate()
        await communicated(process)
    assert process.returncode == 0


async def test_a_hangup_ends_a_daemon_whose_owner_is_gone(folder: Path):
    reader, writer = os.pipe()
    async with enclaved("run", *flags(folder), "--embedded-parent-fd", str(reader), pass_fds=(reader,)) as process:
        await said(process, b'"event": "ready"')
        process.send_signal(signal.SIGHUP)
        _, err = await communicated(process)
    os.close(reader)
    os.close(writer)
    assert process.returncode == 0
    assert b'"event": "stopped"' in err.splitlines()[-1]


@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed"])
async def test_an_embedded_daemon_ends_with_the_process_that_holds_its_pipe(folder: Path, killed: bool):
    reader, writer = os.pipe()
    parent = await asyncio.create_subprocess_exec("sleep", "600", pass_fds=(writer,))
    try:
        async with enclaved("run", *flags(folder), "--embedded-parent-fd", str(reader), pass_fds=(reader,)) as process:
            os.close(reader)
            await said(process, b'"event": "ready"')
            assert (folder / "e.sock").stat().st_mode & 0o777 == 0o600
            os.close(writer)
            assert process.returncode is None
            parent.send_signal(signal.SIGKILL if killed else signal.SIGTERM)
            await communicated(process)
            assert process.returncode == 0
        assert not (folder / "e.sock").exists()
    finally:
        if parent.returncode is None:
            parent.kill()
        await parent.wait()


async def test_an_embedded_daemon_listens_for_its_parent_only_whatever_a_file_says(folder: Path):
    reader, writer = os.pipe()
    config = folder / "config.toml"
    config.write_text('[listen]\ntcp = "127.0.0.1:1"\nunix_mode = "0666"\n')
    async with enclaved(
        *("run", "--config", str(config), "--embedded-parent-fd", str(reader), "--log-format", "json"),
        *("--listen-unix", f"{folder}/e.sock", "--state-dir", f"{folder}/state"),
        pass_fds=(reader,),
        DOCKER_HOST=f"unix://{folder}/none",
    ) as process:
        os.close(reader)
        await said(process, b'"tcp": "", "metrics": ""')
        assert (folder / "e.sock").stat().st_mode & 0o777 == 0o600
        os.close(writer)
        await communicated(process)
    assert process.returncode == 0


async def test_systemd_is_told(folder: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{folder}/notify")
        manager.setblocking(False)
        loop = asyncio.get_running_loop()
        # The watchdog names this test's process, not the daemon's: it is not meant for the daemon.
        more = {"NOTIFY_SOCKET": f"{folder}/notify", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(os.getpid())}
        async with enclaved("run", *flags(folder), **more) as process:
            assert await loop.sock_recv(manager, 100) == b"READY=1"
            process.send_signal(signal.SIGTERM)
            assert await loop.sock_recv(manager, 100) == b"STOPPING=1"
            await communicated(process)
    assert process.returncode == 0


async def ended(*arguments: str, **more: str) -> tuple[int | None, list[str]]:
    """Runs the command to its end; returns its code and the lines of its standard error."""
    async with enclaved(*arguments, **more) as process:
        out, err = await communicated(process)
    assert out == b""
    return process.returncode, err.decode().splitlines()


async def test_a_second_daemon_exits_with_a_code_of_its_own(folder: Path):
    async with enclaved("run", *flags(folder)) as first:
        await said(first, b'"event": "ready"')
        code, lines = await ended("run", *flags(folder))
        first.terminate()
        await communicated(first)
    assert code == 4
    assert lines == [
        f"enclaved: another enclaved (process {first.pid}) uses the state directory {folder}/state; stop it first"
    ]


async def test_a_wrong_configuration_exits_with_a_line_for_each_problem(folder: Path):
    code, lines = await ended("run", *flags(folder), "--limits-cpu-max", "5 apples", ENCLAVED_LOG_LEVEL="loud")
    assert code == 2
    assert lines == [
        "enclaved: environment ENCLAVED_LOG_LEVEL: log.level must be 'debug', 'info', 'warning' or 'error'",
        "enclaved: flag --limits-cpu-max: limits.cpu_max must be a valid number, unable to parse string as a number",
    ]


async def test_what_cannot_be_used_exits_with_one_line(folder: Path):
    (folder / "e.sock").write_text("precious")
    code, lines = await ended("run", *flags(folder), "--log-level", "error")
    assert code == 1
    assert lines == [f"enclaved: cannot listen on {folder}/e.sock: a file that is no socket is there; remove it"]


async def test_a_pipe_that_is_not_there_exits_with_one_line(folder: Path):
    code, lines = await ended("run", *flags(folder), "--embedded-parent-fd", "77")
    assert (code, lines) == (1, ["enclaved: the parent's file descriptor 77 cannot be used: Bad file descriptor"])
