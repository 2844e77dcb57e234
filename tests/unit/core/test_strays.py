"""What of a state directory may go: only what has a name of ours, and only while it is the same thing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from enclaved.core import strays

GUEST = "guest-0123456789abcdef.py"


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    (tmp_path / "s").mkdir()
    (tmp_path / "guest").mkdir()
    return tmp_path


def names(places: Iterable[strays.Place]) -> set[str]:
    return {place.path.name for place in places}


def test_directories_of_sandboxes_are_found_but_for_those_with_an_owner(state_dir: Path):
    for name in ("00000001", "00000002", "notes", "0000000g"):
        (state_dir / "s" / name).mkdir()
    (state_dir / "s" / "00000003").touch()
    assert names(strays.directories(state_dir, {state_dir / "s" / "00000002"})) == {"00000001"}


def test_a_state_directory_that_was_never_used_has_none(tmp_path: Path):
    assert not [*strays.directories(tmp_path / "none"), *strays.half_written(tmp_path / "none")]


def test_half_written_files_are_found_but_for_those_of_this_process(state_dir: Path):
    for folder, name in ((state_dir, ".key."), (state_dir / "guest", f".{GUEST}.")):
        (folder / f"{name}4194305").touch()
        (folder / f"{name}{os.getpid()}").touch()
        (folder / f"{name}x").touch()
    (state_dir / "key").touch()
    assert names(strays.half_written(state_dir)) == {".key.4194305", f".{GUEST}.4194305"}


def test_guests_of_earlier_versions_are_found(state_dir: Path):
    current, earlier = state_dir / "guest" / GUEST, state_dir / "guest" / GUEST.replace("0", "f")
    for path in (current, earlier, state_dir / "guest" / "guest.py"):
        path.touch()
    assert names(strays.earlier_guests(state_dir, current)) == {earlier.name}
    assert names(strays.earlier_guests(state_dir, None)) == {earlier.name, current.name}


def test_a_link_is_not_taken_for_a_directory_and_what_it_points_to_stays(state_dir: Path, tmp_path: Path):
    target = tmp_path / "target"
    (target / "inner").mkdir(parents=True)
    (state_dir / "s" / "00000001").symlink_to(target)
    assert not [*strays.directories(state_dir)]
    (state_dir / "s" / "00000002").mkdir()
    (state_dir / "s" / "00000002" / "link").symlink_to(target)
    (place,) = strays.directories(state_dir)
    strays.remove(place)
    assert not place.path.exists()
    assert (target / "inner").exists()


def test_something_else_that_has_taken_its_name_stays(state_dir: Path):
    path = state_dir / "s" / "00000001"
    path.mkdir()
    (place,) = strays.directories(state_dir)
    other = state_dir / "s" / "other"
    other.mkdir()
    path.rmdir()
    other.rename(path)
    strays.remove(place)
    assert path.exists()
    assert not strays.is_there(place)


def test_the_size_is_that_on_the_disk_and_links_count_as_links(state_dir: Path):
    data = state_dir / "s" / "data"
    data.write_bytes(b"x" * 100_000)
    assert strays.size_bytes(state_dir / "s") >= 100_000
    (state_dir / "guest" / "link").symlink_to(data)
    assert strays.size_bytes(state_dir / "guest") < 100_000
    assert strays.size_bytes(state_dir / "none") == 0
