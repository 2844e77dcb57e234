"""Files from Python, at a real daemon whose sandboxes are processes of this machine."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ms_enclave import errors
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave.sandbox import _directories as directories
from ms_enclave.sandbox._received import Received
from ms_enclave.sandbox.boxes import DockerSandbox
from ms_enclave.sandbox.model import ChangeKind, FileChange, FileInfo, FileType, SearchMatch

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


async def test_a_small_sandbox_cannot_fill_its_users_disk(sandbox: DockerSandbox, tmp_path: Path) -> None:
    await sandbox.execute_command("mkdir d; truncate -s 1M d/1; for n in 2 3 4 5; do ln d/1 d/$n; done")
    with pytest.raises(errors.InvalidRequest, match="more than 4194304 bytes"):
        await sandbox.files.get_dir("d", tmp_path / "d", size_max_bytes=4 * 1024**2)
    with pytest.raises(errors.InvalidRequest, match="more than 4194304 bytes"):
        await sandbox.files.get_archive("d", tmp_path / "d.tar", size_max_bytes=4 * 1024**2)
    assert [*tmp_path.rglob("*")] == [tmp_path / "d"]
    assert await sandbox.files.get_dir("d", tmp_path / "d", size_max_bytes=5 * 1024**2) == 5


async def test_what_grows_while_it_is_fetched_is_counted_as_it_comes(
    sandbox: DockerSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sandbox.files.write("d/f", bytes(1000))
    listed = await sandbox.files.list("d", recursive=True)
    await sandbox.files.write("d/f", bytes(300_000))

    async def as_it_was(*_: object, **__: object) -> list[FileInfo]:
        return listed

    monkeypatch.setattr(sandbox.files, "list", as_it_was)
    with pytest.raises(errors.InvalidRequest, match="more than 2000 bytes"):
        await sandbox.files.get_dir("d", tmp_path / "d", size_max_bytes=2000)
    assert [*(tmp_path / "d").iterdir()] == []


async def test_many_files_come_by_few_calls_and_only_what_was_asked_for(
    sandbox: DockerSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "BATCH_FILES", 20)
    source = tmp_path / "source"
    (source / ("long" * 40)).mkdir(parents=True)
    for number in range(30):
        (source / f"{number:02}").write_bytes(b"x" * number * 100)
        (source / ("long" * 40) / f"{number:02}").write_bytes(b"y" * number)
    assert await sandbox.files.put_dir(source, "d") == 60
    await sandbox.execute_command("ln -s /etc/passwd d/link; mkfifo d/pipe")
    seen: list[tuple[int, int]] = []
    assert await sandbox.files.get_dir("d", tmp_path / "back", progress=lambda *now: seen.append(now)) == 60
    assert len(seen) == 60
    assert seen[-1][0] == seen[-1][1] == sum(number * 101 for number in range(30))
    for path in source.rglob("*"):
        back = tmp_path / "back" / path.relative_to(source)
        assert path.is_dir() or back.read_bytes() == path.read_bytes()
    assert await sandbox.files.get_dir("d", tmp_path / "back") == 0


async def test_what_a_strangers_archive_holds_is_taken_only_where_it_was_asked_for() -> None:
    async def pieces(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 700):
            yield data[start : start + 700]

    def packed(kind: bytes) -> bytes:
        info = tarfile.TarInfo("n" * 300)
        info.size, info.type = 5, kind
        return info.tobuf(tarfile.GNU_FORMAT) + b"hello".ljust(512, b"\0")

    received = Received(pieces(packed(tarfile.REGTYPE) * 2 + bytes(1024)))
    assert await received.next() == ("n" * 300, 5)
    assert b"".join([data async for data in received.content(5)]) == b"hello"
    assert await received.next() == ("n" * 300, 5)
    assert await received.next() is None  # whoever does not read a file passes over it
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
        with pytest.raises(errors.InvalidRequest, match="not asked for"):
            await Received(pieces(packed(kind))).next()
    with pytest.raises(errors.InvalidRequest, match="not asked for"):
        await Received(pieces(b"nonsense" * 64)).next()
    with pytest.raises(errors.DaemonUnavailable, match="too early"):
        await Received(pieces(packed(tarfile.REGTYPE)[:400])).next()


async def test_a_file_that_changes_while_it_is_sent_is_not_sent_in_a_mixture(
    sandbox: DockerSandbox, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"1" * 1_000_000)
    calls = (await sandbox.transport()).files  # type: ignore[union-attr]

    async def upload(*arguments: Any, **named: Any) -> int:
        (tmp_path / "f").write_bytes(b"2" * 1_000_001)
        return await calls.upload(*arguments, **named)

    changing = SimpleNamespace(upload=upload)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(sandbox.files), "_calls", lambda self: asyncio.sleep(0, changing))
        with pytest.raises(errors.InvalidRequest, match="changed while it was sent"):
            await sandbox.files.upload(tmp_path / "f", "f")
    assert not await sandbox.files.exists("f")
