"""What lies in a container is seen from the host, without following links and without a word of the image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enclaved.core import outside_look
from enclaved.core.host_paths import found
from enclaved.core.outside_look import check_from_outside
from enclaved.errors import EngineRefused
from enclaved.model import Mount

BOX = "c" * 64


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> int:
    """This process, as if it were the first one of a container whose root is that of the host."""
    monkeypatch.setattr(outside_look, "_is_of", lambda pid, container_id: container_id == BOX)
    return os.getpid()


def look(pid: int, source: Path, target: Path, container_id: str = BOX) -> bool:
    with found([Mount(str(source), str(target), True)]) as places:
        return check_from_outside(pid, container_id, places, "box")


def test_what_was_found_is_known_again_and_anything_else_is_refused(ours: int, tmp_path: Path) -> None:
    one, other = tmp_path.resolve() / "one", tmp_path.resolve() / "other"
    one.mkdir()
    other.mkdir()
    assert look(ours, one, one)
    with pytest.raises(EngineRefused, match="something else was mounted than what was found at"):
        look(ours, one, other)
    with pytest.raises(EngineRefused, match="cannot be looked at"):
        look(ours, one, tmp_path / "nowhere")


def test_no_link_is_followed_even_to_the_right_place(ours: int, tmp_path: Path) -> None:
    one = tmp_path.resolve() / "one"
    (one / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(one)
    for target, source in ((tmp_path / "link", one), (tmp_path / "link" / "inner", one / "inner")):
        with pytest.raises(EngineRefused, match="a link on the way"):
            look(ours, source, target)


def test_where_the_daemon_cannot_look_it_says_so(ours: int, tmp_path: Path) -> None:
    place = tmp_path.resolve()
    assert not look(0, place, place)
    assert not look(ours, place, place, "another")


def test_a_process_of_another_container_is_not_looked_at(tmp_path: Path) -> None:
    place = tmp_path.resolve()
    assert not look(os.getpid(), place, place)
    assert not look(2**22 + 1, place, place)
