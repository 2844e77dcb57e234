"""Archives from strangers, unpacked by the guest's own code into a directory of this machine."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import tracemalloc

import pytest

from enclaved.agent.guest import unpacking
from enclaved.agent.guest.expanding import ArchiveRefused
from enclaved.agent.guest.globs import matcher
from enclaved.agent.guest.packing import pack
from enclaved.agent.guest.paths import find
from tests.unit.agent.archives import check_outside, directory, member, packed, unpack


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


@pytest.mark.parametrize("pack_one", [gzip.compress, bz2.compress, lzma.compress])
def test_streams_that_follow_each_other_are_one_archive(pack_one: type[bytes]) -> None:
    """As programs make them that pack in parallel. What follows and is no such stream is ignored, as by other tools."""
    whole = packed((member("a", b"1" * 3000), b"1" * 3000), (member("b", b"2"), b"2"))
    archive = b"".join([pack_one(whole[:1000]), pack_one(b""), pack_one(whole[1000:]), b"\0" * 1000])
    with directory() as folder:
        assert unpack(archive, folder).entries == 2
        assert (folder / "target" / "a").read_bytes() == b"1" * 3000
    with directory() as folder, pytest.raises(ArchiveRefused, match="cannot be read"):
        unpack(pack_one(whole[:1000]) + pack_one(whole[1000:])[:30], folder)


@pytest.mark.parametrize("name", ["BZhell", "\x1f\udc8b\x08"])
def test_an_archive_is_known_by_more_than_the_name_of_its_first_file(name: str) -> None:
    with directory() as folder:
        unpack(packed((member(name, b"1"), b"1"), form=tarfile.GNU_FORMAT), folder)
        assert os.listdir(folder / "target") == [name]


def test_of_archives_that_follow_each_other_the_first_counts() -> None:
    with directory() as folder:
        assert unpack(packed((member("a", b"1"), b"1")) + packed((member("b", b"2"), b"2")), folder).entries == 1
        assert os.listdir(folder / "target") == ["a"]


def test_of_entries_with_one_name_the_last_stays() -> None:
    files = [(member("a", content), content) for content in (b"one", b"three")]
    with directory() as folder:
        unpack(packed(*files, (member("./x/../a", b"4"), b"4")), folder)
        assert (folder / "target" / "a").read_bytes() == b"4"
        for entry in ((member("a/b", b"1"), b"1"), (member("a", kind=tarfile.DIRTYPE), b"")):
            with pytest.raises(OSError, match="Not a directory"):
                unpack(packed(entry), folder)
        assert (folder / "target" / "a").read_bytes() == b"4"


def test_an_archive_that_is_too_deep_is_refused() -> None:
    with directory() as folder, pytest.raises(ArchiveRefused, match="more than 200 directories deep"):
        unpack(packed((member("d/" * 300 + "f", b"1"), b"1")), folder)


def test_a_mode_gives_no_more_rights_than_its_owner_has() -> None:
    with directory() as folder:
        for number, mode in enumerate((0o7777, 0o6755, 0o2644, 0o1666, 0o000, 0o111)):
            entry = member(str(number), b"1")
            entry.mode = mode
            unpack(packed((entry, b"1")), folder)
            found = (folder / "target" / str(number)).stat().st_mode & 0o7777
            assert found & 0o7022 == 0
            assert found & 0o600 == 0o600


@pytest.mark.parametrize("pack_one", [bytes, gzip.compress, bz2.compress])
def test_a_large_archive_takes_little_memory_both_ways(pack_one: type[bytes]) -> None:
    content = bytes(12 * 1024 * 1024)
    entries = [(member(f"{number:05}"), b"") for number in range(500)]
    archive = pack_one(packed((member("big", content), content), *entries))
    with directory() as folder:
        tracemalloc.start()
        try:
            unpack(archive, folder)
            _, unpacking_bytes = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            with open(os.devnull, "wb") as nowhere:
                pack(find("target", str(folder)), nowhere, pack_one is gzip.compress)
            _, packing_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert unpacking_bytes - len(archive) < 6 * 1024 * 1024
    assert packing_bytes < 6 * 1024 * 1024
