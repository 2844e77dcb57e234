"""What goes from this machine into a sandbox, and what comes back: only files, and only those that changed."""

from __future__ import annotations

import os
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from ms_enclave._model.files import FileInfo, FileType
from ms_enclave.errors import InvalidRequest, PathNotFound
from ms_enclave.sandbox import _directories as directories
from ms_enclave.sandbox import _uploads as uploads
from ms_enclave.sandbox._landing import save


class FakeFiles:
    """The files of a sandbox, in memory."""

    def __init__(self) -> None:
        self.found: dict[str, FileInfo] = {}
        self.archives: list[dict[str, tuple[bytes, int]]] = []
        self.contents: dict[str, bytes] = {}

    async def stat(self, sandbox_id: str, path: str) -> FileInfo:
        if not self.found:
            raise PathNotFound("nothing there")
        return info("/sandbox/in", kind=FileType.DIRECTORY)

    async def list(self, sandbox_id: str, path: str, *, recursive: bool) -> AsyncGenerator[FileInfo, None]:
        for one in self.found.values():
            yield one

    async def read(self, sandbox_id: str, path: str, *, seen: FileInfo) -> AsyncGenerator[bytes, None]:
        yield self.contents[path]

    async def read_archive(self, sandbox_id: str, path: str, *, names: Collection[str]) -> AsyncGenerator[bytes, None]:
        for name in names:
            data = self.contents[f"{path}/{name}"]
            member = tarfile.TarInfo(name)
            member.size = len(data)
            yield member.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
        yield bytes(1024)

    async def write_archive(
        self, sandbox_id: str, path: str, content: Callable[[], AsyncIterator[bytes]]
    ) -> tuple[int, int]:
        data = b"".join([piece async for piece in content()])
        members = {}
        with tarfile.open(fileobj=BytesIO(data)) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                members[member.name] = (file.read(), member.mode)
                self.found[member.name] = info(
                    f"/sandbox/in/{member.name}", size=member.size, mode=member.mode, time_s=int(member.mtime)
                )
        self.archives.append(members)
        return len(members), len(data)


def info(
    path: str, *, kind: FileType = FileType.REGULAR, size: int = 0, mode: int = 0o644, time_s: int = 1000
) -> FileInfo:
    return FileInfo(path, kind, size, mode, datetime.fromtimestamp(time_s), 1000)


@pytest.fixture
def files() -> Any:
    return FakeFiles()


async def test_a_directory_is_sent_once_and_then_only_what_changed(files: Any, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "top.txt").write_bytes(b"top")
    (tmp_path / "top.txt").chmod(0o666)
    (tmp_path / "a" / "b" / "run.sh").write_bytes(b"x" * 600_000)
    (tmp_path / "a" / "b" / "run.sh").chmod(0o755)
    (tmp_path / "link").symlink_to("top.txt")
    assert await directories.put(files, "box", tmp_path, "in") == 3
    assert files.archives == [
        {"top.txt": (b"top", 0o644), "link": (b"top", 0o644), "a/b/run.sh": (b"x" * 600_000, 0o755)}
    ]
    assert await directories.put(files, "box", tmp_path, "in") == 0
    (tmp_path / "a" / "b" / "run.sh").write_bytes(b"y")
    assert await directories.put(files, "box", tmp_path, "in") == 1
    assert files.archives[1:] == [{"a/b/run.sh": (b"y", 0o755)}]


async def test_only_files_and_directories_are_sent(files: Any, tmp_path: Path) -> None:
    (tmp_path / "ok").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe' is neither a regular file nor a directory"):
        await directories.put(files, "box", tmp_path, "in")
    (tmp_path / "pipe").unlink()
    (tmp_path / "secret").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="secret' is a link that leads out"):
        await directories.put(files, "box", tmp_path, "in")
    with pytest.raises(ValueError, match="is no directory"):
        await directories.put(files, "box", tmp_path / "nope", "in")
    assert files.archives == []


async def test_what_a_sandbox_lists_cannot_lead_out_of_the_directory_here(files: Any, tmp_path: Path) -> None:
    top = "/sandbox/out"
    good = [f"{top}/a/f", f"{top}/g"]
    hostile = [
        f"{top}/../escape",
        f"{top}/a/../../escape",
        f"{top}//etc/x",
        "/etc/passwd",
        f"{top}/\N{REPLACEMENT CHARACTER}",
        f"{top}/./x",
    ]
    listed = [info(path, size=1) for path in good + hostile]
    listed.append(info(f"{top}/link", kind=FileType.SYMLINK))
    files.contents = dict.fromkeys(good + hostile, b"1")
    target = tmp_path / "here"
    assert await directories.get(files, "box", top, listed, target) == 2
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "here",
        "here/a",
        "here/a/f",
        "here/g",
    ]
    assert await directories.get(files, "box", top, listed, target) == 0


async def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"half"
        raise InvalidRequest("cut")

    with pytest.raises(InvalidRequest):
        await save(breaks(), tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


async def test_the_content_of_bytes_can_be_asked_for_anew() -> None:
    content = uploads.content_of(b"x" * 600_000)
    for _ in range(2):
        assert b"".join([piece async for piece in content()]) == b"x" * 600_000
    with pytest.raises(InvalidRequest, match="cannot be written as"):
        uploads.encoded("\N{SNOWMAN}", "ascii")
