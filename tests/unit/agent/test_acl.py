"""Letting one more user in."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path

from enclaved.agent import acl
from enclaved.agent.peer import bound_socket

GUEST = 1_000_000


def test_a_directory_lets_one_more_user_through_and_remembers_who_that_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o710)
    assert acl.who_may_enter(tmp_path) is None
    acl.let_enter(tmp_path, GUEST)
    acl.let_enter(tmp_path, GUEST + 1)
    assert acl.who_may_enter(tmp_path) == GUEST + 1
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o710
    assert acl.who_may_enter(tmp_path / "missing") is None


def test_only_the_guest_of_a_mapped_engine_gets_to_its_socket() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        path = Path(folder) / "s" / "agent.sock"
        listening = bound_socket(path, os.getegid(), GUEST)
        listening.listen()
        try:
            assert reached_by(GUEST, path)
            assert not reached_by(GUEST + 1, path)
        finally:
            listening.close()


def reached_by(uid: int, path: Path) -> bool:
    """Whether a process of this user, without groups, can connect."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
