"""Files from Python, at a real daemon whose sandboxes are processes of this machine."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ms_enclave import errors
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave.sandbox.boxes import DockerSandbox
from ms_enclave.sandbox.model import ChangeKind, FileChange, FileType, SearchMatch

from tests.service.daemons import daemon, settings_in, short_directory

PATIENCE_S = 30.0


@pytest.fixture
async def sandbox() -> AsyncIterator[DockerSandbox]:
    async with short_directory() as folder:
        settings = settings_in(folder)
        async with daemon(settings):
            made = DockerSandbox(sandbox_id="box")
            made.use(GrpcTransport(f"unix:{settings.listen.unix}"), {})
            async with made:
                yield made


async def test_files_are_written_looked_at_and_changed(sandbox: DockerSandbox) -> None:
    files = sandbox.files
    assert await files.write("a/b.txt", "Gr\u00fc\u00dfe", encoding="latin-1", mode=0o600) == 5
    assert await files.read("a/b.txt", offset=3) == b"\xdfe"
    found = await files.stat("a/b.txt")
    assert (found.type, found.size_bytes, found.mode) == (FileType.REGULAR, 5, 0o600)
    await files.make_directory("d/e", create_parents=True)
    await files.copy("a", "d/e/a", recursive=True)
    await files.move("a/b.txt", "top.txt")
    with pytest.raises(errors.PathExists):
        await files.copy("d/e/a/b.txt", "top.txt")
    with pytest.raises(FileExistsError):
        await files.make_directory("top.txt")
    await files.remove("a")
    with pytest.raises(errors.PathUnusable):
        await files.remove("d")
    names = [Path(info.path).name for info in await files.list(recursive=True, glob="**/*.txt")]
    assert names == ["b.txt", "top.txt"]
    await files.remove("d", recursive=True)
    assert (await files.exists("d"), await files.exists("top.txt")) == (False, True)
    with pytest.raises(FileNotFoundError):
        await files.stat("d")
    with pytest.raises(errors.InvalidRequest):
        await files.make_directory("/etc/x")


async def test_lines_are_found(sandbox: DockerSandbox) -> None:
    await sandbox.files.write("a.py", "one\nTwo\n")
    result = await sandbox.files.search("two", ignore_case=True)
    assert result.matches == (SearchMatch((await sandbox.files.stat("a.py")).path, 2, "Two"),)
    assert (await sandbox.files.search("o", matches_max=1)).truncated
    with pytest.raises(errors.InvalidRequest, match="regular expression"):
        await sandbox.files.search("(")


async def test_changes_are_seen_from_the_moment_on_that_a_watch_begins(sandbox: DockerSandbox) -> None:
    async with sandbox.files.watch() as changes, asyncio.timeout(PATIENCE_S):
        await sandbox.files.make_directory("d")
        change = await anext(changes)
        assert change == FileChange(ChangeKind.CREATED, (await sandbox.files.stat("d")).path, True)
    with pytest.raises(errors.PathNotFound):
        async with sandbox.files.watch("missing"):
            pass


async def test_files_go_up_and_down_with_progress(sandbox: DockerSandbox, tmp_path: Path) -> None:
    data = bytes(range(256)) * 8000
    (tmp_path / "up").write_bytes(data)
    seen: list[tuple[int, int]] = []
    assert await sandbox.files.upload(tmp_path / "up", "f", progress=lambda *now: seen.append(now)) == len(data)
    assert seen[-1] == (len(data), len(data))
    seen.clear()
    assert await sandbox.files.download("f", tmp_path / "down", progress=lambda *now: seen.append(now)) == len(data)
    assert (tmp_path / "down").read_bytes() == data
    assert seen[-1] == (len(data), len(data))


async def test_directories_move_only_what_changed(sandbox: DockerSandbox, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "f").write_bytes(b"1")
    (source / "g").write_bytes(b"2")
    assert [await sandbox.files.put_dir(source, "in") for _ in range(2)] == [2, 0]
    (source / "g").write_bytes(b"22")
    assert await sandbox.files.put_dir(source, "in") == 1
    assert [await sandbox.files.get_dir("in", back) for _ in range(2)] == [2, 0]
    assert (back / "sub" / "f").read_bytes() + (back / "g").read_bytes() == b"122"


async def test_archives_go_both_ways(sandbox: DockerSandbox, tmp_path: Path) -> None:
    await sandbox.files.write("d/e/f", b"1" * 300_000)
    await sandbox.files.get_archive("d", tmp_path / "d.tgz", gzip=True)
    assert await sandbox.files.put_archive(tmp_path / "d.tgz", "again") == 2
    assert await sandbox.files.read("again/e/f") == b"1" * 300_000
    with tarfile.open(fileobj=io.BytesIO(await sandbox.files.get_archive("d"))) as archive:
        assert archive.getnames() == ["e", "e/f"]
    with pytest.raises(ValueError, match="cannot be read"):
        await sandbox.put_archive("x", b"nonsense" * 100)
    with pytest.raises(ValueError, match="must not be empty"):
        await sandbox.put_archive("x", b"")
    assert not await sandbox.files.exists("x")
