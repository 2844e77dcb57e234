"""The processes of a sandbox as /proc tells of them, and signals to them.

A process is never judged by what it can change about itself: only by its ancestors, its session and its uid.
"""

from __future__ import annotations

import os
import signal

from .limits import FEW, STOP_ROUNDS
from .procfs import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Optional, Set, Tuple

    Table = Dict[int, Optional[Tuple[int, int]]]  # parent and session by pid


def stat(pid: int) -> Optional[Tuple[int, int]]:
    """Parent and session of a process; None if it is gone or dead. The name in the middle may contain anything.

    A leader that has ended looks dead (Z) while other threads of it run on; then it is not.
    """
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] == b"X" or (fields[0] == b"Z" and int(fields[17]) <= 1):
        return None
    return int(fields[1]), int(fields[3])


def real_uid(pid: int) -> int:
    """The real user of a process; -1 if it is gone."""
    try:
        with open("/proc/%d/status" % pid, "rb") as file:
            for line in file:
                if line.startswith(b"Uid:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return -1


def belongs(pid: int, table: Table, leader: int) -> bool:
    """Whether a process is in the session of a leader or descends from it."""
    for _ in range(len(table) + 1):
        entry = table.get(pid)
        if entry is None:
            return False
        if leader in entry:
            return True
        pid = entry[0]
    return False


def send_signal(pid: int, number: int) -> None:
    """Sends a signal to one process of this sandbox; one that is gone is fine."""
    if pid > 1 and pid != os.getpid():
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def kill(pid: int) -> None:
    """Kills one process of this sandbox."""
    send_signal(pid, signal.SIGKILL)


def kill_all(victims: Set[int], again: Callable[[], Set[int]]) -> None:
    """Kills a set of processes. Many of them may be a bomb: they are stopped first, and looked at again."""
    if len(victims) > FEW:
        for _ in range(STOP_ROUNDS):
            for pid in victims:
                send_signal(pid, signal.SIGSTOP)
            known, victims = victims, victims | again()
            if victims == known:
                break
    for pid in victims:
        kill(pid)


class Processes:
    """Which processes there are, and which of them are the user's."""

    def __init__(self, uid: int, owns_namespace: bool) -> None:
        self.uid, self.owns_namespace = uid, owns_namespace
        self.privileged = os.getuid() == 0
        self.known: Set[int] = set()  # as they were listed last

    def listed(self) -> Set[int]:
        """The processes there are: all of our namespace, or only our descendants where it is not ours."""
        try:
            pids = self.known = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        except OSError:  # no memory or descriptor left: who looks again and again sees more when there is
            pids = self.known
        if self.owns_namespace:
            return pids
        table = {pid: stat(pid) for pid in pids}
        return {pid for pid in pids if belongs(pid, table, os.getpid())}

    def is_above_user(self, pid: int) -> bool:
        """Whether a process has another user than the sandbox's or some capability, which no program can get."""
        rights = dict(pairs("/proc/%d/status" % pid))
        if not self.privileged or "Uid" not in rights:
            return False
        capabilities = (rights.get(name, "0") for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"))
        return rights["Uid"].split() != [str(self.uid)] * 4 or any(int(value, 16) for value in capabilities)

    def users_among(self, pids: Set[int]) -> Set[int]:
        """Those processes that run as the sandbox's user and live. Many may be a bomb: they are stopped first.

        We share the sandbox's processor time with them, and would have next to none for the looks. What turns out to be
        ours goes on.
        """
        if len(pids) > FEW:
            for pid in pids:
                send_signal(pid, signal.SIGSTOP)
        users = {pid for pid in pids if self.is_users(pid)}
        if len(pids) > FEW:
            for pid in pids - users:
                send_signal(pid, signal.SIGCONT)
        return {pid for pid in users if stat(pid) is not None}

    def is_users(self, pid: int) -> bool:
        """Whether a process runs as the sandbox's user; without privileges, all do."""
        return not self.privileged or real_uid(pid) == self.uid
