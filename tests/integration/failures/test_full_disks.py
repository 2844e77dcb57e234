"""A disk that is full, under the daemon or in the sandbox: a typed error, nothing half done, and on it goes."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ms_enclave.errors import NoSpace
from ms_enclave.sandbox.boxes import Sandbox
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import SandboxType

from tests.integration.failures.ground import Ground

SMALL = {"memory_limit": "128m"}
MIB = 1024 * 1024
PAGE = 4096


@contextmanager
def filled(folder: Path, pages_left: int = 0) -> Iterator[None]:
    """Lets nobody write more than some pages below a directory for as long as the block runs."""
    if os.geteuid() != 0:  # only root may mount a small file system
        folder.chmod(0o500)
        yield
        folder.chmod(0o700)
        return
    ballast = folder / "ballast"
    with pytest.raises(OSError, match="No space left on device"), ballast.open("wb", buffering=0) as file:
        file.writelines(itertools.repeat(bytes(PAGE)))
    os.truncate(ballast, ballast.stat().st_size - pages_left * PAGE)
    yield
    ballast.unlink()


def state_on_a_small_disk(ground: Ground) -> Path:
    """A place for a state directory, on one mebibyte."""
    if os.geteuid() == 0:
        return ground.mount_tmpfs("small", "1m")
    (ground.folder / "small").mkdir()
    return ground.folder / "small"


async def works(manager: LocalSandboxManager, sandbox_id: str) -> bool:
    result = await manager.execute_tool(sandbox_id, "python_executor", {"code": "print(6 * 7)"})
    return result.output == "42\n"


async def test_a_daemon_whose_disk_is_full_makes_no_sandboxes_until_there_is_space_again(ground: Ground):
    state = state_on_a_small_disk(ground)
    daemon = await ground.daemon(state_dir=state)
    async with LocalSandboxManager(address=daemon.address) as manager:
        first = await manager.create_sandbox(SandboxType.DOCKER, SMALL)
        with filled(state):
            with pytest.raises(NoSpace, match="state directory") as caught:
                await manager.create_sandbox(SandboxType.DOCKER, SMALL)
            assert str(state) in str(caught.value)
            assert caught.value.metadata["path"].startswith(str(state))
            assert isinstance(caught.value, OSError)
            assert await manager.get_sandbox_info(first) is not None
            assert len(ground.containers()) == 1
        second = await manager.create_sandbox(SandboxType.DOCKER, SMALL)
        assert await works(manager, second)
        assert await works(manager, first)
        assert len(list((state / "s").iterdir())) == 2
    assert list((state / "s").iterdir()) == []
    daemon.check_log()


@pytest.mark.parametrize("pages_left", [0, 1, 4], ids=["for nothing", "for its lock", "for its key"])
async def test_a_daemon_that_cannot_write_its_state_does_not_start_and_says_why(ground: Ground, pages_left: int):
    state = state_on_a_small_disk(ground)
    with filled(state, pages_left):
        daemon = ground.start_daemon(state_dir=state)
        assert await daemon.ended() == 1
    (line,) = daemon.text.splitlines()
    assert line.startswith("enclaved: cannot ")
    assert f"{state}: " in line
    assert line.endswith("with state.dir (--state-dir)")
    assert {path.name for path in state.rglob("*")} <= {"lock", "key", "guest"}, "half a file takes room"
    again = await ground.daemon(state_dir=state)
    again.process.terminate()
    assert await again.ended() == 0


async def test_a_daemon_on_a_disk_that_became_read_only_does_not_start_and_says_why(ground: Ground):
    state = state_on_a_small_disk(ground)
    first = await ground.daemon(state_dir=state)
    first.process.terminate()
    assert await first.ended() == 0
    if os.geteuid() == 0:
        await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,ro", state], check=True)
    else:
        (state / "lock").chmod(0o400)
    daemon = ground.start_daemon(state_dir=state)
    assert await daemon.ended() == 1
    (line,) = daemon.text.splitlines()
    assert line.startswith(f"enclaved: cannot use the state directory {state}: ")
    assert line.endswith("with state.dir (--state-dir)")


@pytest.mark.parametrize("place", ["/sandbox", "/tmp", "/dev/shm"])
async def test_a_sandbox_whose_disk_is_full_says_so_and_goes_on(sandbox: Sandbox, place: str):
    fill = f"""
import errno, os
try:
    with open({place!r} + "/ballast", "wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    result = await sandbox.execute_tool("python_executor", {"code": fill})
    assert result.output in ("ENOSPC\n", "EFBIG\n")
    if place != "/dev/shm":
        with pytest.raises(NoSpace, match="file system is full") as caught:
            await sandbox.put_file(f"{place}/more", bytes(8 * MIB))
        assert caught.value.metadata["path"] == f"{place}/more"
        parameters = {"operation": "write", "file_path": f"{place}/more", "content": "x" * (MIB // 2)}
        written = await sandbox.execute_tool("file_operation", parameters)
        assert (written.success, "No space left on device" in (written.error or "")) == (False, True)
        listed = await sandbox.execute_command(f"ls -A {place}")
        assert listed.stdout == "ballast\n", "what could not be written left something behind"
    result = await sandbox.execute_tool("python_executor", {"code": "print('still here')", "isolated": True})
    assert result.output == "still here\n"
    await sandbox.execute_command(f"rm {place}/ballast")
    if place != "/dev/shm":
        await sandbox.put_file(f"{place}/more", bytes(MIB))
        await sandbox.execute_command(f"rm {place}/more")


async def test_a_log_that_cannot_be_written_stops_nothing(ground: Ground):
    daemon = ground.start_daemon(output=Path("/dev/full"))
    await daemon.listens()
    async with LocalSandboxManager(address=daemon.address) as manager:
        assert await works(manager, await manager.create_sandbox(SandboxType.DOCKER, SMALL))
    daemon.process.terminate()
    assert await daemon.ended() == 0
