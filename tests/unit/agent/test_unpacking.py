"""Archives from strangers, unpacked by the guest's own code into a directory of this machine."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from enclaved.agent.guest import unpacking
from enclaved.agent.guest.expanding import Archive, ArchiveRefused
from enclaved.agent.guest.globs import matcher
from enclaved.agent.guest.paths import PathRefused, find
from enclaved.agent.guest.unpacking import Unpacking, members


@contextmanager
def directory() -> Iterator[Path]:
    """A directory with a target in it, and something outside the target that must stay as it is."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        (Path(folder) / "target").mkdir()
        (Path(folder) / "outside").write_bytes(b"kept")
        yield Path(folder)


def unpack(archive: bytes, folder: Path) -> Unpacking:
    fd = os.open(folder / "target", os.O_RDONLY)
    with tempfile.TemporaryFile() as file:
        file.write(archive)
        file.seek(0)
        found = Unpacking(fd)
        try:
            source = Archive(file.fileno())
            found.run(source, members(source))
        finally:
            os.close(fd)
    return found


def member(name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.type, found.linkname, found.mtime = len(content), kind, link, 1000
    return found


def packed(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def leads_in_circles(link: Path) -> bool:
    try:
        link.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def check_outside(folder: Path) -> None:
    """Nothing was written but below the target, and no link there leads out of it."""
    assert sorted(path.name for path in folder.iterdir()) == ["outside", "target"]
    assert (folder / "outside").read_bytes() == b"kept"
    top = (folder / "target").resolve()
    for path in top.rglob("*"):
        assert not path.is_symlink() or leads_in_circles(path) or os.path.realpath(path).startswith(str(top))
        assert path.is_file() or path.is_dir() or path.is_symlink()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_an_archive_is_unpacked_however_it_is_packed(form: int, pack: type[bytes]) -> None:
    script = member("bin/run", b"#!/bin/sh\n")
    script.mode = 0o4777
    archive = packed(
        (member("a/b.txt", b"text"), b"text"),
        (script, b"#!/bin/sh\n"),
        (member("empty", kind=tarfile.DIRTYPE), b""),
        (member("a/link", kind=tarfile.SYMTYPE, link="../bin/run"), b""),
        (member("a/hard", kind=tarfile.LNKTYPE, link="a/b.txt"), b""),
        (member("/absolute", b"x"), b"x"),
        form=form,
    )
    with directory() as folder:
        found = unpack(pack(archive), folder)
        target = folder / "target"
        assert (found.entries, found.size_bytes) == (6, 4 + 10 + 4 + 1)
        assert (target / "a/b.txt").read_bytes() == (target / "a/hard").read_bytes() == b"text"
        assert (target / "bin/run").stat().st_mode & 0o7777 == 0o755
        assert (target / "a/b.txt").stat().st_mtime == 1000
        assert (target / "absolute").read_bytes() == b"x"
        assert os.readlink(target / "a/link") == "../bin/run"
        assert (target / "a/b.txt").stat().st_ino != (target / "a/hard").stat().st_ino
        check_outside(folder)


@pytest.mark.parametrize(
    ("hostile", "why"),
    [
        (member("../outside", b"x"), "leads out of the target"),
        (member("a/../../outside", b"x"), "leads out of the target"),
        (member("/../outside", b"x"), "leads out of the target"),
        (member("l", kind=tarfile.SYMTYPE, link="/etc/passwd"), "link that leads out"),
        (member("l", kind=tarfile.SYMTYPE, link="../outside"), "link that leads out"),
        (member("a/l", kind=tarfile.SYMTYPE, link="../../outside"), "link that leads out"),
        (member("l", kind=tarfile.SYMTYPE, link="a/../../outside"), "link that leads out"),
        (member("l", kind=tarfile.SYMTYPE, link=""), "link to something"),
        (member("l", kind=tarfile.LNKTYPE, link="../outside"), "leads out of the target"),
        (member("l", kind=tarfile.LNKTYPE, link="missing"), "links to nothing"),
        (member("l", kind=tarfile.LNKTYPE, link="."), "links to nothing"),
        (member("d", kind=tarfile.CHRTYPE), "special file"),
        (member("d", kind=tarfile.BLKTYPE), "special file"),
        (member("d", kind=tarfile.FIFOTYPE), "special file"),
        (member("d", kind=tarfile.GNUTYPE_SPARSE), "sparse"),
        (member(".", b"x"), "no name of a file"),
        (member("a/" + "x" * 5000, b"x"), "cannot be a name"),
    ],
)
def test_a_hostile_entry_is_refused_and_writes_nothing(hostile: tarfile.TarInfo, why: str) -> None:
    hostile.size = 1 if hostile.isreg() else 0
    archive = packed((member("before", b"1"), b"1"), (hostile, b"x"), (member("after", b"1"), b"1"))
    with directory() as folder:
        with pytest.raises(ArchiveRefused, match=why):
            unpack(archive, folder)
        assert os.listdir(folder / "target") == ["before"]
        check_outside(folder)


def test_nothing_is_unpacked_through_a_link() -> None:
    archive = packed(
        (member("l", kind=tarfile.SYMTYPE, link="d"), b""), (member("d/f", b"1"), b"1"), (member("l/g", b"1"), b"1")
    )
    with directory() as folder, pytest.raises(ArchiveRefused, match="is a link"):
        unpack(archive, folder)
    with directory() as folder:
        (folder / "target" / "there").symlink_to(folder)
        with pytest.raises(ArchiveRefused, match="is a link"):
            unpack(packed((member("there/outside", b"1"), b"1")), folder)
        assert (folder / "outside").read_bytes() == b"kept"
        unpack(packed((member("there", b"1"), b"1")), folder)
        assert (folder / "target" / "there").read_bytes() == b"1"
        assert not (folder / "target" / "there").is_symlink()


def test_a_hard_link_carries_no_link_to_where_it_leads_out() -> None:
    link = (member("a/b/l", kind=tarfile.SYMTYPE, link="../.."), b"")
    with directory() as folder, pytest.raises(ArchiveRefused, match="links to nothing that is a file"):
        unpack(packed(link, (member("l", kind=tarfile.LNKTYPE, link="a/b/l"), b"")), folder)


def test_a_huge_header_and_a_bomb_are_refused_before_they_take_memory() -> None:
    huge = member("x")
    huge.pax_headers = {"comment": "x" * 100_000}
    claimed = tarfile.TarInfo("big")
    claimed.size = 2**40
    bomb = claimed.tobuf(tarfile.GNU_FORMAT) + gzip.compress(b"")
    for archive, why in ((packed((huge, b"")), "a header has more"), (bomb, "unpacks to more")):
        with directory() as folder:
            with pytest.raises(ArchiveRefused, match=why):
                unpack(archive, folder)
            check_outside(folder)


@pytest.mark.parametrize("data", [b"", b"nonsense" * 200, b"\x1f\x8bnonsense", b"BZhnonsense", b"\xfd7zXZ\0nonsense"])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with directory() as folder, pytest.raises(ArchiveRefused, match="cannot be read"):
        unpack(data, folder)


NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "c\n", "l", "\udcff"]), min_size=1, max_size=5)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
ENTRIES = st.tuples(NAMES.map("/".join), KINDS, NAMES.map("/".join), st.binary(max_size=700))


@settings(max_examples=400, deadline=None)
@given(st.lists(ENTRIES, max_size=8), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_no_archive_leads_out(entries: list[tuple[str, bytes, str, bytes]], form: int) -> None:
    members = []
    for name, kind, link, content in entries:
        info = member(name, content if kind == tarfile.REGTYPE else b"", kind=kind, link=link)
        members.append((info, content))
    with directory() as folder:
        try:
            unpack(packed(*members, form=form), folder)
        except OSError as error:
            event(type(error).__name__)
        check_outside(folder)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_refused_or_stays_inside(data: st.DataObject) -> None:
    whole = packed((member("a/b", b"1" * 600), b"1" * 600), (member("c" * 120, b"2"), b"2"))
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 6)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with directory() as folder:
        with suppress(OSError):
            unpack(bytes(damaged), folder)
        check_outside(folder)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(NAMES.map("/".join), NAMES.map("/".join)), max_size=5),
    NAMES.map("/".join),
    st.booleans(),
)
def test_no_path_leads_out(links: list[tuple[str, str]], path: str, follow: bool) -> None:
    """With /tmp itself allowed, the directories lie in another file system."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        top = os.path.realpath(folder)
        os.makedirs(os.path.join(top, "a/b"))
        for name, target in links:
            try:
                os.symlink(target or ".", os.path.join(top, name))
            except (OSError, ValueError):
                continue
        try:
            place = find(path or ".", top, follow)
        except (PathRefused, NotADirectoryError):
            return
        assert place.path == top or place.path.startswith((f"{top}/", "/tmp/"))
        opened = os.path.realpath(f"/proc/self/fd/{place.folder}")
        assert "/".join([opened, *place.missing, place.name]) == place.path or place.path == top
        os.close(place.folder)


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("", "a/b", True),
        ("*", "a", True),
        ("*", "a/b", False),
        ("**", "a/b/c", True),
        ("**/c", "c", True),
        ("**/c", "a/b/c", True),
        ("a/**/c", "a/c", True),
        ("a/**/c", "b/c", False),
        ("[ab]?.py", "ax.py", True),
        ("**/**/**/**/**/**/**/**/x", "/".join("a" * 100), False),
    ],
)
def test_a_pattern_matches_as_in_a_shell(pattern: str, path: str, found: bool) -> None:
    assert matcher(pattern)(path) is found


def test_an_archive_of_too_many_entries_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MEMBERS_MAX", 2)
    with directory() as folder, pytest.raises(ArchiveRefused, match="has more than 2 members"):
        unpack(packed(*((member(str(number)), b"") for number in range(9))), folder)


def test_an_archive_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "UNPACKED_BYTES_MAX", 1000)
    with directory() as folder, pytest.raises(ArchiveRefused, match="unpacks to more than 1000 bytes"):
        unpack(gzip.compress(packed((member("x", bytes(2000)), bytes(2000)))), folder)
    copies = [(member(f"h{number}", kind=tarfile.LNKTYPE, link="x"), b"") for number in range(4)]
    with directory() as folder, pytest.raises(ArchiveRefused, match="unpacks to more than 1000 bytes"):
        unpack(packed((member("x", bytes(300)), bytes(300)), *copies), folder)
