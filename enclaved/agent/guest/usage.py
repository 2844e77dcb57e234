"""What executions use right now, from the files of /proc that the guest may read itself.

One look at the process table serves every execution and every reader for 50 ms; with very many processes for longer,
so that looking takes at most a tenth of the guest's time.
"""

from __future__ import annotations

import heapq
import os
import time

from .limits import SAMPLE_KEPT_S, USAGE
from .procfs import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Set

    from .execution import Execution

SHARE_OF_TIME = 10.0
PEAKS_READ = 16

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Process:
    """One line of the process table. Times include those of children that have ended and were waited for."""

    __slots__ = ("memory_bytes", "parent", "session", "system_ticks", "threads", "user_ticks")

    def __init__(self, stat: bytes) -> None:
        """Reads /proc/PID/stat. The name in the middle may contain anything, also what looks like its end."""
        fields = stat[stat.rindex(b")") + 2 :].split()
        self.parent, self.session = int(fields[1]), int(fields[3])
        self.user_ticks = int(fields[11]) + int(fields[13])
        self.system_ticks = int(fields[12]) + int(fields[14])
        self.threads = 0 if fields[0] in (b"Z", b"X") and int(fields[17]) <= 1 else int(fields[17])
        self.memory_bytes = max(0, int(fields[21])) * PAGE_BYTES


def read_process(pid: int) -> Optional[Process]:
    """Looks at one process; None if it is gone."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            return Process(file.read())
    except (OSError, ValueError):  # an empty file: it went away while we looked
        return None


def trees_of(table: Dict[int, Process], leaders: Iterable[int]) -> Dict[int, List[int]]:
    """The processes in the session of each leader and all that descend from them, in order of their numbers."""
    trees: Dict[int, List[int]] = {leader: [] for leader in leaders}
    known = {leader: leader for leader in trees}  # process: whose it is; 0: nobody's
    for pid in sorted(table):
        path = []
        above = pid
        while above not in known:
            known[above] = 0  # which also ends a circle
            path.append(above)
            process = table.get(above)
            if process is None:
                break
            above = process.session if process.session in trees else process.parent
        owner = known[above]
        for each in path:
            known[each] = owner
        if owner:
            trees[owner].append(pid)
    return trees


def tree_of(table: Dict[int, Process], leader: int) -> List[int]:
    """The processes of one leader, as `trees_of` tells of many."""
    return trees_of(table, (leader,))[leader]


class Used:
    """What the processes of an execution are known to have used. Times, peaks and bytes never fall.

    They could: a process that nobody waited for takes its times with it.
    """

    def __init__(self) -> None:
        self.cpu_user_s = self.cpu_system_s = 0.0
        self.memory_peak_bytes = self.memory_bytes = self.pids = 0
        self.io_read_bytes = self.io_write_bytes = 0

    def add(self, tree: List[Process], memory_peak_bytes: int) -> None:
        """Takes in a look at its processes."""
        self.cpu_user_s = max(self.cpu_user_s, sum(process.user_ticks for process in tree) / TICKS_PER_S)
        self.cpu_system_s = max(self.cpu_system_s, sum(process.system_ticks for process in tree) / TICKS_PER_S)
        self.memory_peak_bytes = max(self.memory_peak_bytes, memory_peak_bytes)
        self.memory_bytes = sum(process.memory_bytes for process in tree)
        self.pids = sum(process.threads for process in tree)

    def add_transfer(self, read_bytes: int, written_bytes: int) -> None:
        """Takes in what the observer claims."""
        self.io_read_bytes = max(self.io_read_bytes, read_bytes)
        self.io_write_bytes = max(self.io_write_bytes, written_bytes)

    def header(self) -> Dict[str, Any]:
        """Its fields as they travel in a sample."""
        names = USAGE + ("memory_bytes", "pids")
        return {name: getattr(self, name) for name in names}


class Sampler:
    """Looks at the process table, for everybody at once."""

    def __init__(self, listed: Callable[[], Set[int]]) -> None:
        """``listed`` tells which processes there are."""
        self.listed = listed
        self.table: Dict[int, Process] = {}
        self.looked_at = self.took_s = 0.0

    def look(self, leader: int) -> Dict[int, Process]:
        """The process table of now, or of a moment ago if this process is in it."""
        begin = time.monotonic()
        kept_s = SHARE_OF_TIME * self.took_s
        if leader in self.table:
            kept_s = max(SAMPLE_KEPT_S, kept_s)
        if begin >= self.looked_at + kept_s:
            found = {pid: read_process(pid) for pid in self.listed()}
            self.table = {pid: process for pid, process in found.items() if process is not None}
            self.looked_at = time.monotonic()
            self.took_s = self.looked_at - begin
        return self.table

    def tree(self, leader: int) -> List[int]:
        """The processes of an execution, given by the one that it was started with."""
        return tree_of(self.look(leader), leader)

    def sample(self, execution: Execution) -> List[int]:
        """Notes what an execution uses, and returns its processes."""
        table = self.look(execution.pid)
        tree = tree_of(table, execution.pid)
        largest = heapq.nlargest(PEAKS_READ, tree, key=lambda pid: table[pid].memory_bytes)
        peak = max([memory_peak_bytes(pid) for pid in largest], default=0)
        execution.used.add([table[pid] for pid in tree], peak)
        return tree


def memory_peak_bytes(pid: int) -> int:
    """The largest resident set that a process ever had; 0 if it is gone."""
    for name, value in pairs("/proc/%d/status" % pid):
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    return 0


def distinct_file_systems(folders: List[str]) -> List[str]:
    """Those of some folders that stand for all file systems on which they are."""
    found: Dict[int, str] = {}
    for folder in folders:
        try:
            found.setdefault(os.stat(folder).st_dev, folder)
        except OSError:
            continue
    return list(found.values())


def full_file_systems(folders: List[str]) -> int:
    """How many file systems, given by a folder of each, have no byte or no entry left for the user."""
    full = 0
    for folder in folders:
        try:
            space = os.statvfs(folder)
        except OSError:
            continue
        full += (space.f_blocks > 0 and space.f_bavail == 0) or (space.f_files > 0 and space.f_favail == 0)
    return full
