"""scripts/ensure-prometheus: where it finds the programs."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.scripts.loading import load

ensure_prometheus = load("ensure-prometheus")
console = load("_console")


def program(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a PATH without anything in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "cache" / "ms-enclave"


def test_programs_in_the_path_are_used(cache: Path, tmp_path: Path) -> None:
    for name in ("prometheus", "promtool"):
        program(tmp_path / "bin" / name)
    assert ensure_prometheus.find() == tmp_path / "bin"
    assert not cache.exists()


def test_what_is_in_the_cache_is_not_fetched_again(cache: Path) -> None:
    folder = cache / "prometheus" / "usr" / "bin"
    for name in ("prometheus", "promtool"):
        program(folder / name)
    assert ensure_prometheus.find() == folder


def test_on_a_machine_without_apt_one_sentence_says_what_to_do(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ensure_prometheus.main([]) == 1
    assert "Fix: install Prometheus so that both are in PATH" in capsys.readouterr().err


def test_a_package_that_cannot_be_downloaded_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    for name in ("apt-get", "dpkg-deb"):
        program(tmp_path / "bin" / name)
    with pytest.raises((console.Refused, console.CommandFailed, OSError)):
        ensure_prometheus.find()
    assert [path.name for path in cache.iterdir()] == ["prometheus.lock"]
