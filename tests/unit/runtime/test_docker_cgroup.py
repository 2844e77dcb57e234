"""Counters from recorded control group trees of both versions and both drivers."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from enclaved.model import ResourceUsage
from enclaved.runtime.base import Counters
from enclaved.runtime.docker import cgroup
from enclaved.runtime.docker.cgroup import ControlGroups

CONTAINER = "c0ffee00" * 8
UNLIMITED = "9223372036854771712\n"

PIDS = {"pids.events": "max 12\n", "pids.current": "7\n", "pids.peak": "256\n", "pids.max": "256\n"}
V1_MEMORY = {
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "memory.usage_in_bytes": "5000000\n",
    "memory.max_usage_in_bytes": "9000000\n",
    "memory.limit_in_bytes": "134217728\n",
    "memory.stat": "cache 1000001\ninactive_file 5\ntotal_cache 1000001\ntotal_inactive_file 1000000\n",
}
V1_CPU = {
    "cpuacct.usage_user": "1500000000\n",
    "cpuacct.usage_sys": "250000000\n",
    "cpuacct.stat": "user 1\nsystem 2\n",
}
V1_IO = {
    "blkio.throttle.io_service_bytes": "8:0 Read 4096\n8:0 Write 512\n8:0 Sync 4608\n8:0 Total 4608\n"
    "253:1 Read 4\n253:1 Write 2\nTotal 4614\n"
}
V2 = {
    "memory.events": "low 0\nhigh 0\nmax 41\noom 3\noom_kill 3\noom_group_kill 0\n",
    "memory.current": "5000000\n",
    "memory.peak": "9000000\n",
    "memory.max": "134217728\n",
    "memory.stat": "anon 4000000\nfile 1000001\nactive_file 1\ninactive_file 1000000\n",
    "cpu.stat": "usage_usec 1750000\nuser_usec 1500000\nsystem_usec 250000\nnr_periods 0\n",
    "io.stat": "8:0 rbytes=4096 wbytes=512 rios=1 wios=1 dbytes=9 dios=0\n253:1 rbytes=4 wbytes=2 rios=1 wios=1\n",
    **PIDS,
}
EXPECTED = Counters(
    oom_kills=3,
    pids_limit_hits=12,
    memory_peak_bytes=9_000_000,
    memory_limit_bytes=128 * 2**20,
    pids_peak=256,
    pids_limit=256,
)
USAGE = ResourceUsage(
    cpu_user_s=1.5,
    cpu_system_s=0.25,
    memory_peak_bytes=9_000_000,
    io_read_bytes=4100,
    io_write_bytes=514,
    memory_bytes=4_000_000,
    pids=7,
)


def record(folder: Path, files: dict[str, str]) -> None:
    """Lays out a recorded control group."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.fixture(params=[f"enclaved/{CONTAINER}", f"enclaved.slice/docker-{CONTAINER}.scope"])
def name(request) -> str:
    return request.param


def record_1(root: Path, name: str) -> None:
    for controller, files in {"memory": V1_MEMORY, "pids": PIDS, "cpuacct": V1_CPU, "blkio": V1_IO}.items():
        record(root / controller / name, files)


def record_2(root: Path, name: str) -> None:
    record(root / name, V2)


@pytest.fixture(params=[record_1, record_2], ids=["version 1", "version 2"])
def root(request, tmp_path: Path, name: str) -> Path:
    """A recorded tree of one version and one driver."""
    request.param(tmp_path, name)
    return tmp_path


def folder_of(root: Path, file: str) -> Path:
    """The directory of the group that has such a file, or would have it."""
    (found,) = (path for path in root.rglob(file.split(".")[0] + ".*") if path.name == file)
    return found.parent


def test_counters_come_with_peaks_and_limits(root: Path):
    assert ControlGroups(root).counters(CONTAINER) == EXPECTED


def test_use_of_resources_leaves_out_what_can_be_reclaimed(root: Path):
    assert ControlGroups(root).usage(CONTAINER) == USAGE


def test_peaks_are_read_only_when_a_counter_has_moved(root: Path):
    groups = ControlGroups(root)
    pids = folder_of(root, "pids.events")
    (pids / "pids.events").write_text("max 0\n")
    for events in ("memory.events", "memory.oom_control"):
        for path in root.rglob(events):
            path.write_text("oom_kill 0\n")
    assert groups.counters(CONTAINER) == Counters(0, 0)
    (pids / "pids.events").write_text("max 1\n")
    first = groups.counters(CONTAINER)
    assert first == replace(EXPECTED, oom_kills=0, pids_limit_hits=1)
    (pids / "pids.peak").write_text("17\n")
    assert groups.counters(CONTAINER) == first
    (pids / "pids.events").write_text("max 2\n")
    assert groups.counters(CONTAINER) == replace(EXPECTED, oom_kills=0, pids_limit_hits=2, pids_peak=17)


OPTIONAL = {
    "memory.peak": {"memory_peak_bytes": 0},
    "memory.max_usage_in_bytes": {"memory_peak_bytes": 0},
    "memory.max": {"memory_limit_bytes": 0},
    "memory.limit_in_bytes": {"memory_limit_bytes": 0},
    "pids.peak": {"pids_peak": 0},
    "pids.max": {"pids_limit": 0},
    "pids.events": {"pids_limit_hits": 0},
}
OPTIONAL_USAGE = {
    "memory.peak": {"memory_peak_bytes": 0},
    "memory.max_usage_in_bytes": {"memory_peak_bytes": 0},
    "memory.stat": {"memory_bytes": 5_000_000},
    "pids.current": {"pids": 0},
    "cpu.stat": {"cpu_user_s": 0.0, "cpu_system_s": 0.0},
    "cpuacct.usage_sys": {"cpu_system_s": 0.0},
    "io.stat": {"io_read_bytes": 0, "io_write_bytes": 0},
    "blkio.throttle.io_service_bytes": {"io_read_bytes": 0, "io_write_bytes": 0},
}


@pytest.mark.parametrize("garbage", [None, b"", b"\0\xff\n", b"nonsense -1 1e9 \xb2\n" * 2000, b"9" * 4000])
def test_what_is_missing_or_garbage_counts_as_nothing(root: Path, garbage: bytes | None):
    for changes, read, whole in (
        (OPTIONAL, ControlGroups.counters, EXPECTED),
        (OPTIONAL_USAGE, ControlGroups.usage, USAGE),
    ):
        for file, expected in changes.items():
            for path in list(root.rglob(file)):
                before = path.read_bytes()
                if garbage is None:
                    path.unlink()
                else:
                    path.write_bytes(garbage)
                assert read(ControlGroups(root), CONTAINER) == replace(whole, **expected), file  # type: ignore[type-var]
                path.write_bytes(before)


def test_an_older_kernel_counts_cpu_time_in_ticks(tmp_path, name):
    record_1(tmp_path, name)
    (tmp_path / "cpuacct" / name / "cpuacct.usage_user").unlink()
    usage = ControlGroups(tmp_path).usage(CONTAINER)
    assert usage is not None
    second = os.sysconf("SC_CLK_TCK")
    assert (usage.cpu_user_s, usage.cpu_system_s) == (1 / second, 2 / second)


@pytest.mark.parametrize(("file", "text"), [("memory.limit_in_bytes", UNLIMITED), ("memory.max", "max\n")])
def test_no_limit_is_not_known_as_a_number(root: Path, file: str, text: str):
    for path in root.rglob(file):
        path.write_text(text)
        assert ControlGroups(root).counters(CONTAINER) == replace(EXPECTED, memory_limit_bytes=0)


def test_more_reclaimable_memory_than_memory_is_none_in_use(root: Path):
    (folder_of(root, "memory.stat") / "memory.stat").write_text("inactive_file 6000000\ntotal_inactive_file 6000000\n")
    usage = ControlGroups(root).usage(CONTAINER)
    assert usage == replace(USAGE, memory_bytes=0)


def test_a_kernel_that_counts_no_kills_counts_none(tmp_path, name):
    record(tmp_path / "memory" / name, {**V1_MEMORY, "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"})
    record(tmp_path / "pids" / name, {"pids.current": "1\n"})
    counters = ControlGroups(tmp_path).counters(CONTAINER)
    assert counters is not None
    assert (counters.oom_kills, counters.pids_limit_hits) == (0, 0)


def test_a_group_that_is_not_there_has_no_counters(tmp_path):
    assert ControlGroups(tmp_path).counters(CONTAINER) is None
    assert ControlGroups(tmp_path).usage(CONTAINER) is None


def test_a_group_that_goes_and_comes_back_elsewhere_is_found_again(tmp_path):
    groups = ControlGroups(tmp_path)
    record(tmp_path / "enclaved" / CONTAINER, V2)
    assert groups.counters(CONTAINER) == EXPECTED
    shutil.rmtree(tmp_path / "enclaved")
    assert groups.counters(CONTAINER) is None
    assert groups.usage(CONTAINER) is None
    record(tmp_path / "enclaved.slice" / f"docker-{CONTAINER}.scope", V2)
    assert groups.counters(CONTAINER) == EXPECTED
    groups.forget(CONTAINER)
    assert groups.counters(CONTAINER) == EXPECTED


def test_only_so_many_groups_keep_their_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroup, "WATCHED_MOST", 2)
    before = len(os.listdir("/proc/self/fd"))
    groups = ControlGroups(tmp_path)
    for name in "abc":
        record(tmp_path / "enclaved" / (name * 64), V2)
    for _ in range(2):
        for name in "abc":
            assert groups.counters(name * 64) == EXPECTED
    assert len(os.listdir("/proc/self/fd")) == before + 4
    groups.close()
    assert len(os.listdir("/proc/self/fd")) == before
