"""A working directory that is full: whatever does not fit says how much does, and leaves no part of itself."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from ms_enclave.errors import NoSpace
from ms_enclave.sandbox.boxes import Sandbox, SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType

MIB = 1024 * 1024
ROOM = re.compile(r"(/\S+) has (\d+) bytes free of (\d+)$")
SIZES = {"working_dir_size": "8m", "tmp_size": "32m"}


@pytest.fixture
async def small() -> AsyncIterator[Sandbox]:
    """A sandbox with 8 MiB to work in, of which 3 are free."""
    config = DockerSandboxConfig(memory_limit="256m", resource_limits=SIZES)
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as sandbox:
        await sandbox.files.write("tree/big", bytes(5 * MIB))
        await sandbox.files.write("/tmp/big", bytes(5 * MIB))
        yield sandbox


def packed() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("bomb")
        info.size = 100 * MIB
        archive.addfile(info, io.BytesIO(bytes(100 * MIB)))
    return buffer.getvalue()


WAYS: dict[str, Callable[[Sandbox, Path], Awaitable[object]]] = {
    "copy": lambda sandbox, folder: sandbox.files.copy("tree/big", "made"),
    "copy of a tree": lambda sandbox, folder: sandbox.files.copy("tree", "made", recursive=True),
    "move from /tmp": lambda sandbox, folder: sandbox.files.move("/tmp/big", "made"),
    "write": lambda sandbox, folder: sandbox.files.write("made", bytes(5 * MIB)),
    "replacing write": lambda sandbox, folder: sandbox.files.write("tree/big", bytes(4 * MIB)),
    "upload": lambda sandbox, folder: sandbox.files.upload(folder / "big", "made"),
    "bomb": lambda sandbox, folder: sandbox.files.put_archive(packed(), "."),
    "put_dir": lambda sandbox, folder: sandbox.files.put_dir(folder, "."),
}


async def test_what_does_not_fit_says_how_much_does_and_leaves_no_part(small: Sandbox, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(5 * MIB)
    for name, way in WAYS.items():
        with pytest.raises(NoSpace) as caught:
            await way(small, tmp_path)
        room = ROOM.search(str(caught.value))
        assert room is not None, (name, str(caught.value))
        assert (room[1], int(room[3])) == ("/sandbox", 8 * MIB), name
        assert 2 * MIB < int(room[2]) <= 3 * MIB, name
        listed = [info.path for info in await small.files.list(recursive=True)]
        assert listed == ["/sandbox/tree", "/sandbox/tree/big"], name
    assert (await small.files.stat("/tmp/big")).size_bytes == 5 * MIB
    assert len(await small.files.read("tree/big")) == 5 * MIB
