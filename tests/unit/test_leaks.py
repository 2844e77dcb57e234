"""The look for what tests leave behind sees what is left, and nothing that goes in time."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from tests import leaks

SOON_S = 0.3


def test_a_temporary_folder_that_stays_is_named():
    with pytest.raises(AssertionError, match="left behind:\nfolder /tmp/lk"), leaks.nothing_left(patience_s=SOON_S):
        folder = tempfile.mkdtemp(prefix="lk", dir="/tmp")
    shutil.rmtree(folder)


def test_a_temporary_folder_that_goes_is_not():
    with leaks.nothing_left(patience_s=SOON_S), tempfile.TemporaryDirectory(prefix="lk"):
        pass


def test_a_process_that_stays_is_named_with_its_command(tmp_path: Path):
    command = ["sleep", "600"]
    with pytest.raises(AssertionError, match=r"process \d+ \(sleep 600\)"), leaks.nothing_left(patience_s=SOON_S):
        process = subprocess.Popen(command)
    process.kill()
    process.wait()


def test_a_process_that_somebody_else_has_is_ours_if_it_was_told_of_our_folder(tmp_path: Path):
    """Its parent is gone, as that of a daemon's guest would be."""
    command = ["setsid", "--fork", "sh", "-c", f"sleep 600; : {tmp_path}"]
    with (
        pytest.raises(AssertionError, match=r"process \d+ \(sh -c") as caught,
        leaks.nothing_left(tmp_path, patience_s=SOON_S),
    ):
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    (pid,) = re.findall(r"process (\d+) \(sh -c", str(caught.value))
    os.killpg(int(pid), signal.SIGKILL)


def test_a_socket_that_is_still_open_is_named():
    folder = Path(tempfile.mkdtemp(prefix="lk", dir="/tmp"))
    with socket.socket(socket.AF_UNIX) as listener:
        with pytest.raises(AssertionError, match=f"socket {folder}/s"), leaks.nothing_left(folder, patience_s=SOON_S):
            listener.bind(f"{folder}/s")
        shutil.rmtree(folder)


def test_what_was_there_before_is_not_ours():
    process = subprocess.Popen(["sleep", "600"])
    try:
        with leaks.nothing_left(patience_s=SOON_S):
            pass
    finally:
        process.kill()
        process.wait()


def test_rows_of_a_database_are_counted_by_table(tmp_path: Path):
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection, connection:
        connection.execute("CREATE TABLE sandboxes (id TEXT)")
        connection.execute("INSERT INTO sandboxes VALUES ('one'), ('two')")
        connection.execute("CREATE TABLE executions (id TEXT)")
    assert leaks.rows(tmp_path / "state.db") == {"sandboxes": 2, "executions": 0}


def test_a_process_is_measured():
    pid = os.getpid()
    with Path(os.devnull).open() as file:
        assert os.path.realpath(file.name) in leaks.descriptors(pid)
    assert leaks.threads(pid) >= 1
    assert leaks.resident_bytes(pid) > 1024 * 1024
