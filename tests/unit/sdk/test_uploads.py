"""Directories and archives go in file by file, and hostile ones do not go in at all."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from ms_enclave.errors import InvalidRequest
from ms_enclave.sandbox import _uploads as uploads


class Writes:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, int]] = {}

    async def __call__(self, path: str, content: uploads.Content, mode: int) -> int:
        again = [b"".join([piece async for piece in content()]) for _ in range(2)]
        assert again[0] == again[1], "the content can be asked for anew"
        self.files[path] = (again[0], mode)
        return len(again[0])


@pytest.fixture
def write() -> Writes:
    return Writes()


def archive(*members: tarfile.TarInfo | tuple[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size, info.mode = len(member[1]), 0o755
                tar.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def special(name: str, kind: bytes, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


async def test_a_directory_is_copied_with_everything_below_it(write: Writes, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "top.txt").write_bytes(b"top")
    (tmp_path / "top.txt").chmod(0o644)
    (tmp_path / "a" / "b" / "run.sh").write_bytes(b"x" * 600_000)
    (tmp_path / "a" / "b" / "run.sh").chmod(0o755)
    (tmp_path / "link").symlink_to("top.txt")
    await uploads.put_dir(write, str(tmp_path), "/sandbox/in")
    assert write.files == {
        "/sandbox/in/top.txt": (b"top", 0o644),
        "/sandbox/in/link": (b"top", 0o644),
        "/sandbox/in/a/b/run.sh": (b"x" * 600_000, 0o755),
    }


async def test_only_files_and_directories_are_copied(write: Writes, tmp_path: Path) -> None:
    (tmp_path / "ok").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe' is neither a regular file nor a directory"):
        await uploads.put_dir(write, tmp_path, "in")
    (tmp_path / "pipe").unlink()
    (tmp_path / "secret").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="secret' is a link that leads out"):
        await uploads.put_dir(write, tmp_path, "in")
    with pytest.raises(ValueError, match="is no directory"):
        await uploads.put_dir(write, tmp_path / "nope", "in")
    assert write.files == {}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
async def test_an_archive_is_unpacked(write: Writes, mode: str) -> None:
    data = archive(
        special("d/", tarfile.DIRTYPE),
        ("d/a", b"A" * 300_000),
        special("hard", tarfile.LNKTYPE, "d/a"),
        special("d/soft", tarfile.SYMTYPE, "a"),
        mode=mode,
    )
    await uploads.put_archive(write, "/sandbox", data)
    assert {path: data for path, (data, _) in write.files.items()} == dict.fromkeys(
        ["/sandbox/d/a", "/sandbox/hard", "/sandbox/d/soft"], b"A" * 300_000
    )
    assert write.files["/sandbox/d/a"][1] == 0o755


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "Archive body must not be empty"),
        (b"no archive", "cannot be read"),
        (archive(("a", b"x" * 5000))[:2000], "cannot be read"),
        (archive(("a", os.urandom(5000)), mode="w:gz")[:2000], "cannot be read"),
        (archive(("../a", b"x")), "cannot be read"),
        (archive(("ok", b"x"), special("s", tarfile.SYMTYPE, "../../etc/passwd")), "cannot be read"),
        (archive(special("s", tarfile.SYMTYPE, "/etc/passwd")), "cannot be read"),
        (archive(special("h", tarfile.LNKTYPE, "nope")), "links to nothing"),
        (archive(special("a", tarfile.SYMTYPE, "b"), special("b", tarfile.SYMTYPE, "a")), "links to nothing"),
        (archive(special("d/", tarfile.DIRTYPE), special("s", tarfile.SYMTYPE, "d")), "links to nothing"),
        (archive(special("dev", tarfile.CHRTYPE)), "cannot be read"),
    ],
    ids=[
        "empty",
        "junk",
        "cut",
        "cut and packed",
        "climbs",
        "climbs by link",
        "absolute link",
        "dangling",
        "loop",
        "directory",
        "device",
    ],
)
async def test_a_hostile_archive_writes_nothing(write: Writes, data: bytes, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        await uploads.put_archive(write, "/sandbox", data)
    assert write.files == {}


async def test_an_archive_that_is_too_large_is_refused(write: Writes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "ARCHIVE_BYTES_MAX", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        await uploads.put_archive(write, "x", archive(("a", b"x" * 101)))
    copies = [special(f"h{n}", tarfile.LNKTYPE, "a") for n in range(3)]
    with pytest.raises(ValueError, match="more than 100 bytes"):
        await uploads.put_archive(write, "x", archive(("a", b"x" * 30), *copies))
    monkeypatch.setattr(uploads, "ARCHIVE_MEMBERS_MAX", 2)
    with pytest.raises(ValueError, match="more than 2 members"):
        await uploads.put_archive(write, "x", archive(("a", b""), ("b", b""), ("c", b"")))
    assert write.files == {}


async def test_a_member_that_claims_to_be_huge_is_not_unpacked_to_see(write: Writes) -> None:
    bomb = special("bomb", tarfile.REGTYPE, size=2**50).tobuf() + bytes(10240)
    with pytest.raises(ValueError, match="unpacks to more than"):
        await uploads.put_archive(write, "x", bomb)


async def test_absolute_names_stay_below_the_target(write: Writes) -> None:
    await uploads.put_archive(write, "/sandbox", archive(("/etc/x", b"x")))
    assert list(write.files) == ["/sandbox/etc/x"]
