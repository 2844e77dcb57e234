"""Counters from recorded control group trees of both versions and both drivers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from enclaved.runtime.base import Counters
from enclaved.runtime.docker.cgroup import ControlGroups

CONTAINER = "c0ffee00" * 8

V1_MEMORY = {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"}
PIDS = {"pids.events": "max 12\n"}
V2 = {
    "memory.events": "low 0\nhigh 0\nmax 41\noom 3\noom_kill 3\noom_group_kill 0\n",
    **PIDS,
}
EXPECTED = Counters(oom_kills=3, pids_limit_hits=12)


def record(folder: Path, files: dict[str, str]) -> None:
    """Lays out a recorded control group."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.fixture(params=[f"enclaved/{CONTAINER}", f"enclaved.slice/docker-{CONTAINER}.scope"])
def name(request) -> str:
    return request.param


def test_version_1_has_one_tree_per_controller(tmp_path, name):
    record(tmp_path / "memory" / name, V1_MEMORY)
    record(tmp_path / "pids" / name, PIDS)
    assert ControlGroups(tmp_path).counters(CONTAINER) == EXPECTED


def test_version_2_has_one_tree(tmp_path, name):
    record(tmp_path / name, V2)
    assert ControlGroups(tmp_path).counters(CONTAINER) == EXPECTED


def test_a_kernel_that_counts_no_kills_counts_none(tmp_path, name):
    record(tmp_path / "memory" / name, {**V1_MEMORY, "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"})
    record(tmp_path / "pids" / name, {"pids.current": "1\n"})
    counters = ControlGroups(tmp_path).counters(CONTAINER)
    assert counters is not None
    assert (counters.oom_kills, counters.pids_limit_hits) == (0, 0)


def test_a_group_that_is_not_there_has_no_counters(tmp_path):
    assert ControlGroups(tmp_path).counters(CONTAINER) is None


def test_a_group_that_goes_and_comes_back_elsewhere_is_found_again(tmp_path):
    groups = ControlGroups(tmp_path)
    record(tmp_path / "enclaved" / CONTAINER, V2)
    assert groups.counters(CONTAINER) == EXPECTED
    shutil.rmtree(tmp_path / "enclaved")
    assert groups.counters(CONTAINER) is None
    record(tmp_path / "enclaved.slice" / f"docker-{CONTAINER}.scope", V2)
    assert groups.counters(CONTAINER) == EXPECTED
    groups.forget(CONTAINER)
    assert groups.counters(CONTAINER) == EXPECTED
