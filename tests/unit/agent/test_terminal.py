"""Terminals: who they belong to, and what they do with size, input and its end."""

from __future__ import annotations

import errno
import os
import select
import struct
import termios
from collections.abc import Iterator
from fcntl import ioctl

import pytest

from enclaved.agent.guest import terminal
from enclaved.agent.guest.limits import MAX_PAYLOAD_BYTES


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    ours, theirs = terminal.open_terminal(12345, 24, 80)
    yield ours, theirs
    for fd in (ours, theirs):
        try:
            os.close(fd)
        except OSError:
            assert fd == theirs  # closed by the test


def wait_for(fd: int) -> None:
    assert select.select([fd], [], [], 10)[0]


def test_a_terminal_belongs_to_the_sandboxs_user_and_this_process_to_root_again(ends: tuple[int, int]) -> None:
    assert os.fstat(ends[1]).st_uid == (12345 if os.getuid() == 0 else os.getuid())
    with open("/proc/self/status") as status:
        users = next(line for line in status if line.startswith("Uid:"))
    assert set(users.split()[1:]) == {str(os.getuid())}


def test_without_the_c_library_the_terminal_can_be_opened_by_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "libc", lambda: None)
    ours, theirs = terminal.open_terminal(12345, 24, 80)
    found = os.fstat(theirs)
    os.close(ours)
    os.close(theirs)
    assert (found.st_uid, found.st_mode & 0o777) == (os.getuid(), 0o666)


def test_no_command_inherits_an_end(ends: tuple[int, int]) -> None:
    assert [os.get_inheritable(fd) for fd in ends] == [False, False]


def test_the_size_is_set_and_cut_to_what_a_terminal_can_be(ends: tuple[int, int]) -> None:
    ours, theirs = ends
    assert struct.unpack("HHHH", ioctl(theirs, termios.TIOCGWINSZ, bytes(8))) == (24, 80, 0, 0)
    terminal.resize_terminal(ours, 10**6, 1)
    assert struct.unpack("HHHH", ioctl(theirs, termios.TIOCGWINSZ, bytes(8))) == (65535, 1, 0, 0)


def test_output_is_read_in_pieces_of_at_most_one_payload(ends: tuple[int, int]) -> None:
    ours, theirs = ends
    with pytest.raises(BlockingIOError):
        terminal.read_terminal(ours)
    os.set_blocking(theirs, False)
    written = read = 0
    while True:
        try:
            written += os.write(theirs, b"x" * 4096)
        except BlockingIOError:
            break
    while read < written:
        wait_for(ours)
        data = terminal.read_terminal(ours)
        assert 0 < len(data) <= MAX_PAYLOAD_BYTES
        read += len(data)
    assert read == written


def test_what_was_written_before_the_program_closed_it_is_read_before_the_end(ends: tuple[int, int]) -> None:
    ours, theirs = ends
    os.write(theirs, b"last words\n")
    os.close(theirs)
    assert terminal.read_terminal(ours) == b"last words\r\n"
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        terminal.read_terminal(ours)


def test_the_end_of_the_input_ends_a_line_that_was_begun_first(ends: tuple[int, int]) -> None:
    ours, theirs = ends
    assert terminal.end_characters(ours, b"") == b"\x04"
    assert terminal.end_characters(ours, b"\n") == b"\x04"
    assert terminal.end_characters(ours, b"\x04") == b"\x04"
    assert terminal.end_characters(ours, b"a") == b"\x04\x04"
    os.write(ours, b"half" + terminal.end_characters(ours, b"f"))
    assert os.read(theirs, 100) == b"half"
    assert os.read(theirs, 100) == b""


def test_the_end_of_the_input_is_the_character_that_the_program_chose(ends: tuple[int, int]) -> None:
    ours, theirs = ends
    settings = termios.tcgetattr(theirs)
    settings[6][termios.VEOF] = b"\x1a"
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    assert terminal.end_characters(ours, b"a") == b"\x1a\x1a"
    settings[3] &= ~termios.ICANON
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    assert terminal.end_characters(ours, b"a") == b"\x1a"


def test_erasing_takes_away_a_whole_character(ends: tuple[int, int]) -> None:
    ours, theirs = ends
    os.write(ours, "aü".encode() + b"\x7f\n")
    assert os.read(theirs, 100) == b"a\n"


def test_where_no_terminal_can_be_made_nothing_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    real = os.open

    def refuse(path: str, flags: int) -> int:
        if path.startswith("/dev/pts/"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags)

    monkeypatch.setattr(terminal.os, "open", refuse)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        terminal.open_terminal(12345, 24, 80)
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == before
