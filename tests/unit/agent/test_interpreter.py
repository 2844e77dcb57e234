"""Where the daemon finds the interpreter that a guest brings along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enclaved.agent import interpreter
from enclaved.agent.interpreter import FORMAT, find_guest_runtime


@pytest.fixture(autouse=True)
def system_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(interpreter, "SYSTEM_PLACE", tmp_path / "system")
    return tmp_path / "system"


def made(place: Path, manifest: str = json.dumps({"format": FORMAT})) -> Path:
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(manifest)
    return place


def test_it_is_looked_for_in_the_system_before_the_users_cache(tmp_path, system_place):
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert find_guest_runtime("", environ) is None
    in_cache = made(tmp_path / "cache/ms-enclave/guest-runtime")
    assert find_guest_runtime("", environ) == in_cache
    assert find_guest_runtime("", {"HOME": str(tmp_path)}) is None
    assert find_guest_runtime("", {}) is None
    made(system_place)
    assert find_guest_runtime("", environ) == system_place


def test_the_cache_is_in_the_home_where_nothing_else_is_said(tmp_path):
    in_home = made(tmp_path / ".cache/ms-enclave/guest-runtime")
    assert find_guest_runtime("", {"HOME": str(tmp_path)}) == in_home


def test_a_configured_place_is_the_only_one(tmp_path, system_place):
    made(system_place)
    assert find_guest_runtime(str(tmp_path / "mine"), {}) is None
    assert find_guest_runtime(str(made(tmp_path / "mine")), {}) == tmp_path / "mine"


def test_a_link_is_followed_so_that_a_newer_one_leaves_sandboxes_alone(tmp_path):
    made(tmp_path / "guest-runtime-1")
    (tmp_path / "link").symlink_to("guest-runtime-1")
    assert find_guest_runtime(str(tmp_path / "link")) == tmp_path / "guest-runtime-1"


@pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", '{"format": 0}', '{"format": 1' + " " * 5000 + "}"])
def test_half_of_one_and_one_of_another_version_do_not_count(tmp_path, manifest):
    assert find_guest_runtime(str(made(tmp_path / "odd", manifest))) is None
