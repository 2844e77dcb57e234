"""Archives in and out of a sandbox, streamed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator

import pytest

from enclaved.errors import InvalidRequest, NoSpace, PathNotFound, PathUnusable
from tests.service.guest.laboratory import Box, Laboratory, printed

MIB = 1024 * 1024


async def pieces(data: bytes, size: int = 70_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read_archive(box: Box, path: str, *, gzip: bool = False) -> bytes:
    async with box.lab.files.read_archive(box.id, path, gzip=gzip) as chunks:
        return b"".join([chunk async for chunk in chunks])


def packed(name: str, content: bytes, **fields: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in fields.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("gzip", [False, True])
async def test_what_was_packed_is_unpacked_the_same(box: Box, gzip: bool) -> None:
    await box.shell(
        "mkdir -p d/e/empty; head -c 3000000 /dev/urandom > d/big; echo x > 'd/e/odd name\n'; ln -s ../big d/e/l; "
        "chmod 755 d/big; mkfifo d/pipe; touch -d @1000 d/big"
    )
    await box.isolated(r"open(b'd/\xff', 'w'); open('d/' + 'n' * 250, 'w')")
    data = await read_archive(box, "d", gzip=gzip)
    unpacked = await box.lab.files.write_archive(box.id, "copy/of", pieces(data))
    assert (unpacked.entries, unpacked.size_bytes) == (7, 3_000_002)
    await box.shell("rm d/pipe")
    compare = "cd {}; find . -mindepth 1 -printf '%p %y %s %l\\n' | sort | base64; sha256sum big; stat -c '%Y %a' big"
    assert printed(await box.shell(compare.format("copy/of"))) == printed(await box.shell(compare.format("d")))


async def test_one_file_is_an_archive_too(box: Box) -> None:
    await box.shell("echo x > f")
    with tarfile.open(fileobj=io.BytesIO(await read_archive(box, "f"))) as archive:
        assert archive.getnames() == ["f"]
    with pytest.raises(PathNotFound):
        await read_archive(box, "missing")


async def test_a_hostile_archive_is_refused_with_its_reason(box: Box) -> None:
    for hostile in (packed("../x", b"1"), packed("l", b"", type=tarfile.SYMTYPE, linkname="/etc"), b"nonsense" * 100):
        with pytest.raises(InvalidRequest, match="archive: "):
            await box.lab.files.write_archive(box.id, "d", pieces(hostile))
    with pytest.raises(InvalidRequest, match="outside"):
        await box.lab.files.write_archive(box.id, "/etc/d", pieces(packed("x", b"1")))
    await box.shell("touch file")
    with pytest.raises(PathUnusable):
        await box.lab.files.write_archive(box.id, "file", pieces(packed("x", b"1")))


async def test_an_archive_that_is_cut_leaves_only_whole_files(box: Box) -> None:
    data = packed("a", b"1" * 200_000)[:204_800].rstrip(b"\0")
    with pytest.raises(InvalidRequest, match="ends too early"):
        await box.lab.files.write_archive(box.id, "d", pieces(data[:100_000]))
    assert printed(await box.shell("ls -A d")) == ""


async def test_a_bomb_is_held_by_the_sandboxs_limits(lab: Laboratory) -> None:
    box = await lab.box(working_dir_size_bytes=MIB, tmp_size_bytes=MIB)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("bomb")
        info.size = 200 * MIB
        archive.addfile(info, io.BytesIO(bytes(200 * MIB)))
    with pytest.raises(NoSpace):
        await lab.files.write_archive(box.id, "d", pieces(buffer.getvalue()))
    assert printed(await box.shell("ls -A d")) == ""


async def test_a_directory_that_changes_while_it_is_packed_makes_a_whole_archive(box: Box) -> None:
    await box.shell("mkdir d; head -c 2000000 /dev/zero > d/f; mkdir d/g; touch d/g/x")
    busy = await box.open_shell(
        "while :; do truncate -s 0 d/f; truncate -s 2M d/f; mv d/g d/h; ln -s /etc d/g; rm d/g; mv d/h d/g; done"
    )
    try:
        for _ in range(10):
            with tarfile.open(fileobj=io.BytesIO(await read_archive(box, "d"))) as archive:
                for member in archive:
                    assert member.name.split("/")[0] in ("f", "g", "h")
                    assert not member.isreg() or len(archive.extractfile(member).read()) == member.size  # type: ignore[union-attr]
    finally:
        busy.cancel("the test")
    await busy.ended
