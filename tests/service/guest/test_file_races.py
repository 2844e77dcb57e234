"""Programs that move things about while we work on them: nothing is followed out, and nothing blocks."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from enclaved.errors import EnclaveError, InvalidRequest, PathExists, PathNotFound, PathUnusable
from enclaved.model import ChangeKind, FileType
from tests.service.guest.laboratory import Box, printed

SWAPS = """
import ctypes, os
swap = ctypes.CDLL(None, use_errno=True).renameat2
os.makedirs('d/s', exist_ok=True)
open('d/s/f', 'w').write('inside')
os.symlink({outside!r}, 'link')
print('ready', flush=True)
while True:
    swap(-100, b'd/s', -100, b'link', 2)  # RENAME_EXCHANGE: there is no moment without one of them
    try:
        open('d/s/f', 'x').close()
    except OSError:
        pass
"""


@pytest.fixture
async def outside(box: Box) -> AsyncIterator[Path]:
    """A directory that the sandbox's user may change, and the file service must not."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    (folder / "secret").write_text("inside out")
    for path in (folder, folder / "secret"):
        path.chmod(0o777)
    yield folder
    assert (folder / "secret").read_text() == "inside out"
    assert {path.name for path in folder.iterdir()} <= {"secret", "f"}  # the program itself may write there
    shutil.rmtree(folder)


async def rows(stream: Any) -> list[Any]:
    async with stream as pages:
        return [row async for page in pages for row in page]


async def test_a_directory_that_becomes_a_link_meanwhile_is_not_followed(box: Box, outside: Path) -> None:
    racing = await box.open_python(SWAPS.format(outside=str(outside)), isolated=True)
    files, sandbox = box.lab.files, box.id
    async with racing.attach() as events:
        async for event in events:
            if getattr(event, "data", b""):
                break
    met: set[str] = set()
    for round_number in range(12):
        with contextlib.suppress(PathNotFound, PathUnusable, InvalidRequest):
            listed = await rows(files.list(sandbox, "d", recursive=True))
            met |= {os.path.basename(info.path) for info in listed}
        with contextlib.suppress(PathNotFound, PathUnusable, InvalidRequest):
            met |= {os.path.basename(match.path) for match in await rows(files.search(sandbox, "d", "inside"))}
        with contextlib.suppress(PathNotFound, PathUnusable, InvalidRequest):
            async with files.read_archive(sandbox, "d") as chunks:
                packed = b"".join([chunk async for chunk in chunks])
            met |= {os.path.basename(name) for name in names_in(packed)}
        with contextlib.suppress(PathNotFound, PathUnusable, InvalidRequest):
            await files.copy(sandbox, "d", f"copy{round_number}", recursive=True)
        with contextlib.suppress(PathNotFound, PathUnusable, InvalidRequest):
            await files.write(sandbox, "d/s/new/deep", pieces(b"x"), create_parents=True)
        with contextlib.suppress(PathNotFound, PathUnusable, InvalidRequest):
            await files.write_archive(sandbox, "d/s", pieces(archive("unpacked/x", b"x")))
        with contextlib.suppress(PathNotFound, PathUnusable, InvalidRequest):
            await files.remove(sandbox, "d/s/secret")
        with contextlib.suppress(PathNotFound, PathUnusable, InvalidRequest, PathExists):
            await files.move(sandbox, "d/s/secret", "stolen")
    with contextlib.suppress(EnclaveError):
        await files.remove(sandbox, "d", recursive=True)
    racing.cancel("the test")
    await racing.ended
    assert "secret" not in met
    assert not {"new", "unpacked"} & {path.name for path in outside.iterdir()}
    found = printed(await box.shell("find . -name secret -o -name stolen"))
    assert found == ""


async def test_a_watch_does_not_follow_a_link_that_takes_the_place_of_a_directory(box: Box, outside: Path) -> None:
    racing = await box.open_python(SWAPS.format(outside=str(outside)), isolated=True)
    async with racing.attach() as events:
        async for event in events:
            if getattr(event, "data", b""):
                break
    async with box.lab.files.watch(box.id, "d", recursive=True) as changes:
        assert (await anext(changes)).kind is ChangeKind.READY
        for _ in range(300):
            change = await anext(changes)
            assert not change.path.endswith("/secret")
            if change.kind in (ChangeKind.GONE, ChangeKind.OVERFLOW):
                break
    racing.cancel("the test")
    await racing.ended


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


def names_in(packed: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as opened:
        return opened.getnames()


def archive(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        packed.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


async def test_what_would_block_is_refused_or_passed_over(box: Box) -> None:
    await box.isolated(
        "import os, socket\nos.mkdir('d')\nos.mkfifo('d/pipe')\n"
        "socket.socket(socket.AF_UNIX).bind('d/socket')\nopen('d/f', 'w').write('x')"
    )
    files = box.lab.files
    async with asyncio.timeout(30):
        kinds = {os.path.basename(info.path): info.type for info in await rows(files.list(box.id, "d"))}
        assert kinds == {"f": FileType.REGULAR, "pipe": FileType.OTHER, "socket": FileType.OTHER}
        assert len(await rows(files.search(box.id, "d", "x"))) == 1
        async with files.read_archive(box.id, "d") as chunks:
            packed = b"".join([chunk async for chunk in chunks])
        assert names_in(packed) == ["f"]
        for name in ("d/pipe", "d/socket"):
            for call in (files.write(box.id, name, pieces(b"x")), files.copy(box.id, name, "there")):
                with pytest.raises(PathUnusable):
                    await call
        with pytest.raises(PathUnusable):
            await files.copy(box.id, "d", "e", recursive=True)
        await box.isolated("import os\nos.mkfifo('.ms-enclave-upload-trap')")
        with pytest.raises(PathUnusable):
            await files.write(box.id, "up", pieces(b"x"), upload_id="trap")
        await files.move(box.id, "d/pipe", "pipe")
        await files.remove(box.id, "pipe")
        await files.remove(box.id, "d", recursive=True)


@pytest.mark.parametrize("name", ["line\nbreak", "tab\t\x07\x1b[31m", "\u202egnp.exe", " ", "-rf", "a\\b", "'\"$(x)"])
async def test_a_name_is_a_name_whatever_is_in_it(box: Box, name: str) -> None:
    files = box.lab.files
    await files.write(box.id, f"d/{name}", pieces(b"needle\n"), create_parents=True)
    (info,) = await rows(files.list(box.id, "d"))
    assert info.path.endswith(f"/d/{name}")
    (match,) = await rows(files.search(box.id, "d", "needle"))
    assert match.path == info.path
    await files.copy(box.id, f"d/{name}", f"d/2{name}")
    await files.move(box.id, f"d/2{name}", f"d/{name}", replace=True)
    await files.remove(box.id, f"d/{name}")
    assert await rows(files.list(box.id, "d")) == []


async def test_directories_that_are_closed_to_their_owner_are_removed(box: Box) -> None:
    await box.shell("mkdir -p d/a/b/c d/e; touch d/a/f; chmod 0 d/a/b d/e; chmod 555 d/a; chmod 500 d")
    await box.lab.files.remove(box.id, "d", recursive=True)
    assert await rows(box.lab.files.list(box.id, ".")) == []


async def test_a_reader_sees_one_whole_version_of_a_file_that_is_replaced(box: Box) -> None:
    """By the service, by programs of the sandbox, and by archives."""
    versions = [bytes([65 + number]) * 300_000 for number in range(4)]
    await box.lab.files.write(box.id, "f", pieces(versions[0]))

    async def writes(data: bytes) -> None:
        for _ in range(3):
            await box.lab.files.write(box.id, "f", pieces(data))
            await box.lab.files.write_archive(box.id, ".", pieces(archive("f", data)))

    async def reads() -> None:
        for _ in range(6):
            async with box.lab.files.read(box.id, "f") as content:
                assert b"".join([piece async for piece in content]) in versions
            looked = await box.isolated("data = open('f').read(); print(len(data), len(set(data)))")
            assert printed(looked) == "300000 1\n"

    await asyncio.gather(*(writes(data) for data in versions), reads(), reads())
    assert [os.path.basename(info.path) for info in await rows(box.lab.files.list(box.id, "."))] == ["f"]


async def test_ten_thousand_files_are_listed_in_pages_and_removed(box: Box) -> None:
    made = "import os\nos.mkdir('d')\nfor n in range(10_050): os.close(os.open(f'd/{n:05}', os.O_CREAT))"
    printed(await box.isolated(made))
    async with box.lab.files.list(box.id, "d") as pages:
        sizes = [len(page) async for page in pages]
    assert sum(sizes) == 10_050
    assert max(sizes) == 256
    await box.lab.files.remove(box.id, "d", recursive=True)
    assert await rows(box.lab.files.list(box.id, ".")) == []


async def test_a_path_longer_than_the_system_takes_is_listed_copied_and_removed(box: Box) -> None:
    deep = "import os\nfor n in range(60): os.mkdir('d' * 200); os.chdir('d' * 200)\nopen('f', 'w').write('x')"
    printed(await box.isolated(deep))
    files, top = box.lab.files, "d" * 200
    assert len(await rows(files.list(box.id, top, recursive=True))) == 60
    assert len(await rows(files.search(box.id, top, "x"))) == 1
    await files.copy(box.id, top, "copy", recursive=True)
    assert len(await rows(files.list(box.id, "copy", recursive=True))) == 60
    async with files.read_archive(box.id, top) as chunks:
        with pytest.raises(InvalidRequest, match="cannot be a name"):
            await files.write_archive(box.id, "unpacked", chunks)
    for name in (top, "copy", "unpacked"):
        await files.remove(box.id, name, recursive=True)
    await box.isolated("import os\nfor n in range(250): os.mkdir('d'); os.chdir('d')")
    with pytest.raises(PathUnusable, match="more than 200 deep"):
        await rows(files.list(box.id, "d", recursive=True))
    await files.remove(box.id, "d", recursive=True)
