"""The script that makes the interpreter for images without Python, from real packages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scripts.loading import load

script = load("build-guest-runtime")


def test_the_same_packages_give_the_same_bytes(guest_runtime: Path, tmp_path: Path):
    again = script.build(tmp_path / "guest-runtime", mirror="", force=True)
    first, second = (json.loads((made / "manifest.json").read_text()) for made in (guest_runtime, again))
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "guest-runtime",
        f"guest-runtime-{first['digest'][:16]}",
        "guest-runtime.lock",
    ]


def test_one_that_is_up_to_date_is_left_alone(guest_runtime: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(script, "make", lambda *_: pytest.fail("it was made again"))
    assert script.build(None, mirror="", force=False) == guest_runtime


def test_it_is_small_and_any_user_can_read_and_run_it(guest_runtime: Path):
    size = 0
    for path in guest_runtime.resolve().rglob("*"):
        mode = path.lstat().st_mode & 0o7777
        size += 0 if path.is_dir() else path.lstat().st_size
        expected = {0o777} if path.is_symlink() else {0o755} if path.is_dir() else {0o644, 0o755}
        assert mode in expected, path
    assert size < 50_000_000
