"""The limits of control groups, read from and written to files as the kernel has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enclaved.runtime.docker.group_limits import container_groups, read_limits, write_ceiling
from enclaved.runtime.inspection import GroupLimits

MIB = 1024 * 1024
NO_LIMIT = "9223372036854771712"


def files(folder: Path, **contents: str) -> None:
    """Files of a control group; ``__`` in a name is a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_limits_of_version_2_are_read(tmp_path):
    files(tmp_path / "enclaved", memory__max="1048576", memory__swap__max="0", pids__max="64", cpu__max="50000 100000")
    assert read_limits(tmp_path, ("enclaved",)) == GroupLimits(MIB, 0, 64, 0.5)


def test_limits_of_version_1_are_read(tmp_path):
    memory = {"memory__limit_in_bytes": "1048576", "memory__memsw__limit_in_bytes": "1048576"}
    files(tmp_path / "memory" / "enclaved", **memory)
    files(tmp_path / "pids" / "enclaved", pids__max="64")
    files(tmp_path / "cpu" / "enclaved", cpu__cfs_quota_us="100000", cpu__cfs_period_us="100000")
    assert read_limits(tmp_path, ("nothing", "enclaved")) == GroupLimits(MIB, 0, 64, 1.0)


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_no_limit_is_none(tmp_path, version):
    if version == 2:
        files(tmp_path / "enclaved", memory__max="max", memory__swap__max="max", pids__max="max", cpu__max="max 100000")
    else:
        files(
            tmp_path / "memory" / "enclaved",
            memory__limit_in_bytes=NO_LIMIT,
            memory__memsw__limit_in_bytes=NO_LIMIT,
        )
        files(tmp_path / "pids" / "enclaved", pids__max="max")
        files(tmp_path / "cpu" / "enclaved", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert read_limits(tmp_path, ("enclaved",)) == GroupLimits(None, None, None, None)


def test_a_kernel_that_does_not_count_swap_is_known(tmp_path):
    files(tmp_path / "memory" / "enclaved", memory__limit_in_bytes="1048576")
    files(tmp_path / "pids" / "enclaved", pids__max="64")
    found = read_limits(tmp_path, ("enclaved",))
    assert found is not None
    assert not found.counts_swap


def test_a_group_that_is_nowhere_has_no_limits_to_read(tmp_path):
    assert read_limits(tmp_path, container_groups("ab" * 32)) is None


def test_a_ceiling_of_version_2_is_written(tmp_path):
    files(tmp_path, cgroup__controllers="memory pids", cgroup__subtree_control="")
    files(tmp_path / "enclaved", memory__swap__max="max")
    write_ceiling(tmp_path, MIB, 64)
    assert read_limits(tmp_path, ("enclaved",)) == GroupLimits(MIB, 0, 64, None)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_a_ceiling_of_version_1_is_written(tmp_path):
    files(tmp_path / "memory" / "enclaved", memory__limit_in_bytes=NO_LIMIT, memory__memsw__limit_in_bytes=NO_LIMIT)
    (tmp_path / "pids").mkdir()
    write_ceiling(tmp_path, MIB, 64)
    assert read_limits(tmp_path, ("enclaved",)) == GroupLimits(MIB, 0, 64, None)


def test_a_ceiling_can_be_seen_by_others_whatever_the_umask(tmp_path):
    for name in ("memory", "pids"):
        (tmp_path / name).mkdir()
    before = os.umask(0o077)
    try:
        write_ceiling(tmp_path, MIB, 64)
    finally:
        os.umask(before)
    assert {(tmp_path / name / "enclaved").stat().st_mode & 0o777 for name in ("memory", "pids")} == {0o755}


def test_a_tree_that_cannot_be_written_to_is_an_error(tmp_path):
    with pytest.raises(OSError, match="memory"):
        write_ceiling(tmp_path, MIB, 64)
