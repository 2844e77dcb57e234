"""What executions use, computed from lines of the process table."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.agent.guest import usage
from enclaved.agent.guest.usage import (
    Process,
    Sampler,
    Used,
    distinct_file_systems,
    full_file_systems,
    read_process,
    tree_of,
    trees_of,
)


def line(pid: int, parent: int, session: int, *, name: str = "python3", state: str = "S", threads: int = 1) -> bytes:
    """One /proc/PID/stat, with times 10, 20, 30 and 40 and a resident set of 50 pages."""
    head = f"{pid} ({name}) {state} {parent} {pid} {session} 0 -1 4194560 1 2 3 4 10 20 30 40"
    return f"{head} 20 0 {threads} 0 12345 1000000 50 18446744073709551615 1 1 0 0 0 0".encode()


def table_of(*rows: tuple[int, int, int]) -> dict[int, Process]:
    """A process table of (pid, parent, session)."""
    return {pid: Process(line(pid, parent, session)) for pid, parent, session in rows}


@pytest.mark.parametrize("name", ["sh", "a) S 1 1 1 0", ") ) (", "", "a b\nc", "(sd-pam)"])
def test_a_name_that_looks_like_the_rest_of_the_line_is_only_a_name(name: str) -> None:
    process = Process(line(7, 3, 5, name=name, threads=4))
    assert (process.parent, process.session, process.threads) == (3, 5, 4)
    assert (process.user_ticks, process.system_ticks) == (40, 60)
    assert process.memory_bytes == 50 * os.sysconf("SC_PAGE_SIZE")


def test_a_dead_process_counts_no_thread_but_its_time() -> None:
    process = Process(line(7, 3, 5, state="Z"))
    assert (process.threads, process.user_ticks) == (0, 40)


def test_an_ended_leader_whose_threads_go_on_counts_them() -> None:
    assert Process(line(7, 3, 5, state="Z", threads=3)).threads == 3


def test_a_process_that_is_gone_is_none() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert read_process(pid) is None


def test_a_tree_is_the_session_and_all_that_descends_from_it() -> None:
    table = table_of((1, 0, 0), (10, 1, 10), (11, 10, 10), (12, 1, 10), (13, 11, 13), (14, 13, 14), (20, 1, 20))
    assert tree_of(table, 10) == [10, 11, 12, 13, 14]
    assert tree_of(table, 20) == [20]
    assert tree_of(table, 99) == []


def test_the_trees_of_many_leaders_are_found_together() -> None:
    table = table_of((1, 0, 0), (10, 1, 10), (11, 10, 10), (12, 11, 12), (20, 1, 20), (21, 1, 20), (30, 1, 30))
    assert trees_of(table, [10, 20, 40]) == {10: [10, 11, 12], 20: [20, 21], 40: []}


def test_a_tree_whose_leader_is_gone_is_what_is_left_of_its_session() -> None:
    assert tree_of(table_of((1, 0, 0), (12, 1, 10), (13, 12, 13)), 10) == [12, 13]


def test_a_circle_of_parents_ends() -> None:
    assert tree_of(table_of((5, 6, 1), (6, 7, 1), (7, 5, 1)), 10) == []


def test_a_chain_of_very_many_processes_is_followed_quickly() -> None:
    rows = [(pid, pid - 1, pid) for pid in range(11, 30_000)]
    assert len(tree_of(table_of((10, 1, 10), *reversed(rows)), 10)) == 29_990


@given(st.dictionaries(st.integers(1, 30), st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=30))
def test_a_tree_holds_who_has_the_leader_above_and_nobody_else(rows: dict[int, tuple[int, int]]) -> None:
    table = table_of(*((pid, parent, session) for pid, (parent, session) in rows.items()))

    def belongs(pid: int, seen: frozenset[int] = frozenset()) -> bool:
        if pid == 10:
            return True
        if pid not in table or pid in seen:
            return False
        return table[pid].session == 10 or belongs(table[pid].parent, seen | {pid})

    assert tree_of(table, 10) == sorted(pid for pid in table if belongs(pid))


def test_times_and_peaks_never_fall_but_memory_does() -> None:
    used = Used()
    two = list(table_of((10, 1, 10), (11, 10, 10)).values())
    used.add(two, 900)
    used.add_transfer(100, 200)
    used.add(two[:1], 800)
    used.add_transfer(50, 300)
    ticks = os.sysconf("SC_CLK_TCK")
    page = os.sysconf("SC_PAGE_SIZE")
    assert used.header() == {
        "cpu_user_s": 80 / ticks,
        "cpu_system_s": 120 / ticks,
        "memory_peak_bytes": 900,
        "memory_bytes": 50 * page,
        "pids": 1,
        "io_read_bytes": 100,
        "io_write_bytes": 300,
    }


def test_many_who_ask_at_once_cost_one_look() -> None:
    looks: list[int] = []

    def listed() -> set[int]:
        looks.append(1)
        return {os.getpid(), 2**30}

    sampler = Sampler(listed)
    tables = [sampler.look(os.getpid()) for _ in range(100)]
    assert len(looks) == 1
    assert all(table is tables[0] for table in tables)
    assert set(tables[0]) == {os.getpid()}


def test_a_process_that_was_not_there_yet_is_looked_for_again() -> None:
    pids = {os.getppid()}
    sampler = Sampler(lambda: set(pids))
    assert sampler.tree(os.getpid()) == []
    pids.add(os.getpid())
    sampler.took_s = 0.0
    assert sampler.tree(os.getpid()) == [os.getpid()]


def test_a_look_that_takes_long_is_kept_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]

    def listed() -> set[int]:
        now[0] += 0.3
        return set()

    monkeypatch.setattr(usage, "time", SimpleNamespace(monotonic=lambda: now[0]))
    sampler = Sampler(listed)
    sampler.look(1)
    now[0] += 2.9
    sampler.look(1)
    assert now[0] == pytest.approx(103.2)
    now[0] += 0.2
    sampler.look(1)
    assert now[0] == pytest.approx(103.7)


def test_what_this_process_uses_is_seen() -> None:
    sampler = Sampler(lambda: {os.getpid()})
    execution: Any = SimpleNamespace(pid=os.getpid(), used=Used())
    assert sampler.sample(execution) == [os.getpid()]
    assert execution.used.memory_peak_bytes >= execution.used.memory_bytes > 0
    assert execution.used.pids >= 1
    assert execution.used.cpu_user_s > 0


def test_full_file_systems_are_counted_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def space(available: int, entries: int) -> Any:
        return SimpleNamespace(f_blocks=10, f_bavail=available, f_files=10, f_favail=entries)

    spaces = {"/full": space(0, 5), "/same": space(0, 5), "/crowded": space(5, 0), "/roomy": space(5, 5)}
    devices = {"/full": 1, "/same": 1, "/crowded": 2, "/roomy": 3}

    def found(table: dict[str, Any], path: str) -> Any:
        if path not in table:
            raise FileNotFoundError(path)
        return table[path]

    stand_in = SimpleNamespace(
        stat=lambda path: SimpleNamespace(st_dev=found(devices, path)), statvfs=lambda path: found(spaces, path)
    )
    monkeypatch.setattr(usage, "os", stand_in)
    distinct = distinct_file_systems(["/full", "/same", "/crowded", "/roomy", "/missing"])
    assert distinct == ["/full", "/crowded", "/roomy"]
    assert full_file_systems([*distinct, "/missing"]) == 2
