"""Which host directories are found, and as whom a sandbox must run to use them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from enclaved.core.host_paths import Found, check_told, found, look_program, user_for
from enclaved.errors import EngineRefused, InvalidRequest, PolicyDenied
from enclaved.model import Mount

SANDBOXES = range(5000, 6000)
OWN = 5001


def place(owner: int = 1000, mode: int = 0o755, *, read_only: bool = True, kind: int = stat.S_IFDIR) -> Found:
    return Found(Mount("/srv/data", "/data", read_only), -1, 8, 9, owner, kind | mode)


def look(path: Path | str) -> Found:
    with found([Mount(str(path), "/data", read_only=True)]) as places:
        return places[0]


def test_what_lies_at_a_path_is_found_and_held_while_it_is_used(tmp_path: Path):
    before = len(os.listdir("/proc/self/fd"))
    with found([Mount(str(tmp_path.resolve()), "/data", read_only=True)]) as (there,):
        assert (there.device, there.inode) == (tmp_path.stat().st_dev, tmp_path.stat().st_ino)
        assert os.fstat(there.descriptor).st_ino == there.inode
        assert there.is_directory
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_link_anywhere_on_the_way_is_refused_and_named(tmp_path: Path):
    real = tmp_path.resolve() / "real"
    (real / "inner").mkdir(parents=True)
    link = tmp_path.resolve() / "link"
    link.symlink_to(real)
    for path in (link, link / "inner"):
        with pytest.raises(PolicyDenied, match=f"passes through the link {link}; name what it leads to \\('{real}'\\)"):
            look(path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PolicyDenied):
        look(link)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("path", ["", "data", "/srv/../etc", "/srv//data", "/srv/./data", "/srv/", "/a\0b"])
def test_a_path_that_is_not_absolute_and_normalised_is_not_even_looked_at(path: str):
    with pytest.raises(InvalidRequest, match="not absolute and normalised"):
        look(path)


def test_what_is_neither_a_directory_nor_a_file_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path, text in ((tmp_path / "pipe", "neither a directory"), (tmp_path / "none", "make it first")):
        with pytest.raises(InvalidRequest, match=text):
            look(path.resolve())
    with pytest.raises(InvalidRequest, match="neither a directory"):
        look("/dev/null")


def test_reading_leaves_a_sandbox_its_own_user():
    assert user_for([], OWN, SANDBOXES) == OWN
    assert user_for([place(owner=0), place(mode=0o705)], OWN, SANDBOXES) == OWN


def test_writing_makes_it_the_owner_whose_rights_then_count_for_all():
    theirs = place(mode=0o700, read_only=False)
    assert user_for([theirs, place(mode=0o500), place(owner=7, mode=0o444, kind=stat.S_IFREG)], OWN, SANDBOXES) == 1000


@pytest.mark.parametrize(
    ("places", "error", "text"),
    [
        ([place(owner=0, read_only=False)], PolicyDenied, "belongs to root"),
        ([place(owner=65534, read_only=False)], PolicyDenied, "belongs to nobody"),
        ([place(owner=5003, read_only=False)], PolicyDenied, "one of those for sandboxes"),
        ([place(read_only=False), place(owner=1001, read_only=False)], InvalidRequest, "must belong to one user"),
        ([place(mode=0o500, read_only=False)], InvalidRequest, "mode 0500 and belongs to uid 1000.*cannot write to it"),
        (
            [place(mode=0o770)],
            InvalidRequest,
            r"mode 0770.*as uid 5001 and cannot read it \(chmod o\+rX /srv/data\)",
        ),
        ([place(mode=0o754)], InvalidRequest, "cannot read it"),
        ([place(mode=0o640, kind=stat.S_IFREG)], InvalidRequest, "the file /srv/data has mode 0640"),
    ],
)
def test_what_the_user_could_not_use_is_refused_with_path_and_mode(places: list[Found], error: type, text: str):
    with pytest.raises(error, match=text):
        user_for(places, OWN, SANDBOXES)


def test_the_program_that_looks_again_tells_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with found([Mount(str(tmp_path.resolve()), str(tmp_path.resolve()), read_only=True)]) as places:
        exec(compile(look_program(places), "look", "exec"), {})  # as the sandbox's user does
        check_told(places, capsys.readouterr().out.encode(), "box")
        for other in (b"", b"[]", b"[[1, 2]]", b"\xff", b"[" * 100_000):
            with pytest.raises(EngineRefused, match="something else was mounted"):
                check_told(places, other, "box")
