"""What comes out of a sandbox stays below the directory that was named, whatever links this machine has there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ms_enclave._cli import copying
from ms_enclave._cli.copying import Copied, End
from ms_enclave._model.files import FileInfo, FileType
from ms_enclave.errors import InvalidRequest
from ms_enclave.sandbox import _directories as directories
from ms_enclave.sandbox._landing import Landing, save

BAD = b"planted"


def listed(path: str, kind: FileType = FileType.REGULAR, mode: int = 0o644) -> FileInfo:
    return FileInfo(path, kind, len(BAD), mode, datetime.fromtimestamp(1000, UTC), 1000)


class Stranger:
    """A sandbox that answers what suits it; ``meanwhile`` is done before the content of a file comes."""

    def __init__(self, meanwhile: Any = None, *found: FileInfo) -> None:
        self._meanwhile = meanwhile
        self._found = found

    async def read(self, sandbox_id: str, path: str, *, seen: FileInfo) -> AsyncGenerator[bytes, None]:
        if self._meanwhile is not None:
            self._meanwhile()
        yield BAD

    async def stat(self, sandbox_id: str, path: str) -> FileInfo:
        return self._found[0]

    async def list(self, sandbox_id: str, path: str, *, recursive: bool) -> AsyncGenerator[FileInfo, None]:
        for found in self._found[1:]:
            yield found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory outside of the target, with a file; ``target/keys`` leads to it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "own").write_text("mine")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "keys").symlink_to(tmp_path / "home")
    return tmp_path / "home"


def untouched(home: Path) -> bool:
    return [path.name for path in home.iterdir()] == ["own"] and (home / "own").read_text() == "mine"


async def get(target: Path, *found: FileInfo, calls: Any = None) -> int:
    return await directories.get(calls or Stranger(), "box", "/sandbox", found, target)


@pytest.mark.parametrize("name", ["keys/planted", "keys/own", "keys/below/planted"])
async def test_no_file_of_a_sandbox_goes_through_a_link_of_this_machine(home: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="keys' is a link or a file on this machine"):
        await get(home.parent / "target", listed(f"/sandbox/{name}"))
    assert untouched(home)


@pytest.mark.parametrize("name", ["keys", "keys/below"])
async def test_no_directory_of_a_sandbox_is_made_through_a_link_of_this_machine(home: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="nothing is written through it"):
        await get(home.parent / "target", listed(f"/sandbox/{name}", FileType.DIRECTORY))
    assert untouched(home)


async def test_a_link_that_comes_after_the_look_leads_nowhere_either(home: Path) -> None:
    target = home.parent / "target"

    def meanwhile() -> None:
        (target / "d").rename(target / "moved")
        (target / "d").symlink_to(home)

    assert await get(target, listed("/sandbox/d/own", mode=0o755), calls=Stranger(meanwhile)) == 1
    assert untouched(home)
    assert (home / "own").stat().st_mode & 0o777 == 0o644
    assert (target / "moved" / "own").read_bytes() == BAD


async def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(home: Path) -> None:
    target = home.parent / "target"
    (target / "f").symlink_to(home / "own")
    assert await get(target, listed("/sandbox/f", mode=0o755)) == 1
    assert untouched(home)
    found = (target / "f").lstat()
    assert ((target / "f").read_bytes(), found.st_mode & 0o777, found.st_mtime) == (BAD, 0o755, 1000)
    assert not (target / "f").is_symlink()
    assert await get(target, listed("/sandbox/f")) == 0


async def test_the_target_itself_may_be_a_link(home: Path) -> None:
    assert await get(home.parent / "target" / "keys", listed("/sandbox/sub/f")) == 1
    assert (home / "sub" / "f").read_bytes() == BAD


async def test_a_directory_is_not_copied_through_a_link_nor_to_a_name_that_a_sandbox_chose(home: Path) -> None:
    stranger: Any = Stranger(None, listed("/sandbox/keys", FileType.DIRECTORY), listed("/sandbox/keys/planted"))
    target = End("", str(home.parent / "target"))
    with pytest.raises(InvalidRequest, match="nothing is written through it"):
        await copying._out(stranger, End("box", "keys"), target, False, Copied(), lambda moved, total: None)
    await copying._out(stranger, End("box", "results"), target, False, Copied(), lambda moved, total: None)
    assert untouched(home)
    assert (home.parent / "target" / "results" / "planted").read_bytes() == BAD


async def test_of_what_is_cut_nothing_stays(tmp_path: Path) -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield b"1"
        raise ConnectionError

    (tmp_path / "f").write_text("before")
    with pytest.raises(ConnectionError):
        await save(cut(), tmp_path / "f")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "before"


async def test_a_file_where_a_directory_must_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("before")
    with pytest.raises(InvalidRequest, match="f' is a link or a file"):
        await asyncio.to_thread(Landing(tmp_path).make_directory, "f/g")
