"""A daemon that is killed in the middle of a file operation: uploads go on, and nothing half made stays."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from ms_enclave import errors
from ms_enclave.sandbox.boxes import DockerSandbox

from tests.service.crash.world import World, until, world

MIB = 1024 * 1024


async def sandbox_in(made: World) -> tuple[DockerSandbox, Path]:
    """A sandbox of a daemon, and its working directory on this machine."""
    await made.up()
    sandbox_id = await made.client.create("files")
    (container,) = made.engine._containers.values()
    return await DockerSandbox.connect(sandbox_id, address=made.address), container.working_dir


async def again(made: World) -> None:
    """Kills the daemon and starts the next one."""
    assert made.daemon is not None
    made.daemon.kill()
    await made.up()


async def test_an_upload_goes_on_over_a_daemon_that_is_killed() -> None:
    data = os.urandom(4 * MIB)
    begun: list[int] = []
    async with world() as made:
        sandbox, folder = await sandbox_in(made)
        transport = await sandbox.transport()
        assert transport is not None

        async def content(offset: int) -> AsyncIterator[bytes]:
            begun.append(offset)
            for start in range(offset, len(data), 65536):
                if len(begun) == 1 and start > 2 * MIB:
                    await again(made)
                yield data[start : start + 65536]

        size = await transport.files.upload(sandbox.id, "d/file", content, mode=0o600, upload_id="one")
        assert size == len(data)
        assert begun[0] == 0
        assert begun[-1] > 0  # what had arrived was not sent again
        assert (folder / "d" / "file").read_bytes() == data
        assert os.listdir(folder / "d") == ["file"]
        await made.end()


@pytest.mark.parametrize("what", ["copy", "write", "archive"])
async def test_what_a_killed_daemon_had_begun_is_whole_or_not_there(what: str) -> None:
    async with world() as made:
        sandbox, folder = await sandbox_in(made)
        fill = "import os; os.mkdir('tree'); [open(f'tree/{n}', 'wb').write(bytes(5000)) for n in range(3000)]"
        await sandbox.execute_command(["python3", "-c", fill])
        packed = await sandbox.files.get_archive("tree")

        async def slowly() -> AsyncIterator[bytes]:
            for start in range(0, len(packed), 65536):
                yield packed[start : start + 65536]
                if start > len(packed) // 2:
                    await asyncio.Event().wait()

        transport = await sandbox.transport()
        assert transport is not None
        files = transport.files
        ways: dict[str, Callable[[], Awaitable[object]]] = {
            "copy": lambda: files.copy(sandbox.id, "tree", "made", replace=False, recursive=True),
            "write": lambda: files.upload(sandbox.id, "made", lambda offset: slowly(), mode=0o600, upload_id=""),
            "archive": lambda: files.write_archive(sandbox.id, "made", slowly),
        }
        calling = asyncio.ensure_future(ways[what]())
        if what == "write":
            await until(lambda: bool(made.engine._containers), "an upload")
        else:
            await until(lambda: len(os.listdir(folder)) > 1 or calling.done(), "a beginning")
        assert made.daemon is not None
        made.daemon.kill()
        calling.cancel()
        await asyncio.wait([calling])
        await made.up()
        await until(lambda: set(os.listdir(folder)) <= {"tree", "made"}, "a working directory without half a copy")
        if what == "archive":
            assert {path.stat().st_size for path in (folder / "made").iterdir()} <= {5000}
            assert [path.name for path in (folder / "made").iterdir() if path.name.startswith(".")] == []
        elif (folder / "made").exists():
            assert len(os.listdir(folder / "made")) == 3000
        await made.end()


async def download_over_a_kill(made: World, target: Path, meanwhile: Callable[[], object]) -> bytes:
    """Downloads a file during which the daemon is killed once; returns what it was."""
    sandbox, folder = await sandbox_in(made)
    data = os.urandom(16 * MIB)
    (folder / "big").write_bytes(data)
    (folder / "big").chmod(0o644)
    restarts: list[asyncio.Task[None]] = []

    def kill(moved: int, total: int) -> None:
        assert made.daemon is not None
        if not restarts:
            made.daemon.kill()
            meanwhile()
            restarts.append(asyncio.create_task(made.up()))

    try:
        assert await sandbox.files.download("big", target, progress=kill) == len(data)
    finally:
        await asyncio.gather(*restarts)
    return data


async def test_a_download_goes_on_over_a_daemon_that_is_killed(tmp_path: Path) -> None:
    async with world() as made:
        data = await download_over_a_kill(made, tmp_path / "big", lambda: None)
        assert (tmp_path / "big").read_bytes() == data
        await made.end()


async def test_a_file_that_changed_while_there_was_no_daemon_is_not_mixed_with_what_it_was(tmp_path: Path) -> None:
    async with world() as made:

        def change() -> None:
            (container,) = made.engine._containers.values()
            os.utime(container.working_dir / "big", (1, 1))

        with pytest.raises(errors.PathUnusable, match="changed while it was read"):
            await download_over_a_kill(made, tmp_path / "big", change)
        assert list(tmp_path.iterdir()) == []
        await made.end()


async def test_directories_and_whole_files_come_over_a_daemon_that_is_killed(tmp_path: Path) -> None:
    async with world() as made:
        sandbox, folder = await sandbox_in(made)
        contents = {f"{number:02}": os.urandom(MIB) for number in range(20)}
        (folder / "d").mkdir()
        for name, content in contents.items():
            (folder / "d" / name).write_bytes(content)
            (folder / "d" / name).chmod(0o644)
        (folder / "d").chmod(0o755)
        restarts: list[asyncio.Task[None]] = []
        seen: list[int] = []

        def kill(moved: int, total: int) -> None:
            assert made.daemon is not None
            seen.append(moved)
            if not restarts:
                made.daemon.kill()
                restarts.append(asyncio.create_task(made.up()))

        assert await sandbox.files.get_dir("d", tmp_path / "d", progress=kill) == len(contents)
        await asyncio.gather(*restarts)
        assert {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()} == contents
        assert seen == [MIB * number for number in range(1, 21)]  # nothing twice
        await made.end()
