"""The guest's connection over its standard streams: daemons come and go unseen, and half a frame is never one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from enclaved.agent.guest import attached
from enclaved.agent.guest.attached import AttachedLink
from enclaved.agent.guest.frames import FrameDecoder, FrameError, encode_frame
from enclaved.agent.guest.limits import SILENCE_LOOKS, SILENCE_LOOKS_STILL
from enclaved.agent.guest.loop import Loop
from enclaved.agent.guest.resync import NONCE_BYTES, Awaited, opening, seal

FIRST, SECOND = b"1" * NONCE_BYTES, b"2" * NONCE_BYTES


@dataclass
class House:
    """A guest's link, and the other ends of its streams."""

    link: AttachedLink
    to_guest: int
    from_guest: int
    heard: list[dict[str, Any]] = field(default_factory=list)
    came: int = 0
    left: int = 0

    def say(self, data: bytes) -> None:
        """The daemon says something, which may be more than a pipe takes at once."""
        for start in range(0, len(data), 4096):
            os.write(self.to_guest, data[start : start + 4096])
            self.link.receive()

    def said(self, nonce: bytes) -> list[dict[str, Any]]:
        """What the daemon that opened with a nonce hears of what was written since the last look."""
        self.link.flush()
        awaited, found = Awaited(nonce), FrameDecoder()
        return [header for header, _ in found.feed(awaited.feed(os.read(self.from_guest, 65536)))]


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    (reading, to_guest), (from_guest, writing) = os.pipe(), os.pipe()
    for fd in (reading, writing):
        os.set_blocking(fd, False)
    monkeypatch.setattr(attached, "take_streams", lambda: (reading, writing))
    link = AttachedLink(Loop(), 0.0)
    made = House(link, to_guest, from_guest)

    def come() -> None:
        made.came += 1

    def leave() -> None:
        made.left += 1

    link.on_connected, link.on_lost = come, leave
    link.on_frame = lambda header, payload: made.heard.append(header)
    link.connect()
    yield made
    for fd in (reading, to_guest, from_guest, writing):
        os.close(fd)


def test_a_daemon_that_opens_the_stream_is_answered_and_heard(house: House) -> None:
    house.say(b"left over from another" + opening(FIRST))
    assert (house.came, house.left, house.link.daemon) == (1, 0, FIRST)
    house.link.send({"type": "hello"})
    assert house.said(FIRST) == [{"type": "hello"}]
    house.say(seal(FIRST, encode_frame({"type": "ping"})))
    assert house.heard == [{"type": "ping"}]


def test_the_next_daemon_takes_the_place_of_one_that_was_cut_off_in_the_middle_of_a_frame(house: House) -> None:
    house.say(opening(FIRST))
    house.say(seal(FIRST, encode_frame({"type": "run"}, b"x" * 5000))[:-1])
    house.link.send({"type": "for the first"})
    house.say(opening(SECOND))
    assert (house.came, house.left, house.heard) == (2, 1, [])
    house.link.send({"type": "for the second"})
    assert house.said(SECOND) == [{"type": "for the second"}]


def test_nothing_is_heard_before_an_opening_nor_from_one_whose_words_came_apart(house: House) -> None:
    house.say(seal(FIRST, encode_frame({"type": "ping"})))
    house.say(opening(FIRST))
    house.say(seal(SECOND, encode_frame({"type": "ping"})) + seal(FIRST, encode_frame({"type": "ping"})))
    assert (house.came, house.left, house.heard) == (1, 1, [])


def test_a_daemon_that_is_dropped_for_nonsense_hears_of_that(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.say(opening(FIRST) + seal(FIRST, b"\xff" * 40))
    assert (house.came, house.left) == (1, 1)
    assert "cannot be understood" in capsys.readouterr().err
    house.link.send({"type": "too late"})
    with pytest.raises(FrameError):
        house.said(FIRST)


def test_a_daemon_that_says_nothing_for_some_time_is_gone_and_one_that_speaks_is_not(house: House) -> None:
    house.say(opening(FIRST))
    for _ in range(3):
        for _ in range(SILENCE_LOOKS - 1):
            house.link.look()
        house.say(seal(FIRST, encode_frame({"type": "ping"})))
    assert house.left == 0
    for _ in range(SILENCE_LOOKS):
        house.link.look()
    assert (house.left, house.link.daemon) == (1, None)
    house.say(seal(FIRST, encode_frame({"type": "ping"})))
    assert len(house.heard) == 3


def test_a_daemon_that_is_about_to_freeze_the_sandbox_has_more_time(house: House) -> None:
    house.say(opening(FIRST))
    house.link.loop.stand_still()
    for _ in range(SILENCE_LOOKS_STILL - 1):
        house.link.look()
    assert house.left == 0
    house.link.look()
    assert house.left == 1


def test_a_look_is_due_while_the_clock_stands_still_and_only_once_after_a_long_freeze(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, looks = [100.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    loop = Loop()
    loop.each(1.0, lambda: looks.append(now[0]))
    loop.stand_still()
    assert loop.wait_s() == 1.0
    now[0] += 500.0
    loop.run_beat()
    loop.run_beat()
    assert looks == [600.0]
    loop.go_on()
    loop.after(0.25, lambda: None)
    assert loop.wait_s() == 0.25


def test_what_a_full_stream_does_not_take_is_sent_later(house: House) -> None:
    house.say(opening(FIRST))
    awaited, found = Awaited(FIRST), FrameDecoder()
    for number in range(40):
        house.link.send({"type": "output", "number": number}, bytes(10_000))
    numbers = []
    while len(numbers) < 40:
        house.link.flush()
        frames = found.feed(awaited.feed(os.read(house.from_guest, 65536)))
        numbers += [header["number"] for header, _ in frames]
    assert numbers == list(range(40))
    assert house.link.outgoing == bytearray()


def test_the_streams_are_taken_so_that_nothing_else_can_read_or_write_them() -> None:
    code = (
        "import os, subprocess, sys\n"
        "from enclaved.agent.guest.attached import take_streams\n"
        "reading, writing = take_streams()\n"
        "print('into nothing', flush=True)\n"
        "assert sys.stdin.read() == ''\n"
        "subprocess.run(['echo', 'into nothing'], close_fds=False)\n"
        "assert not any(os.get_inheritable(fd) for fd in (reading, writing))\n"
        "os.write(writing, os.read(reading, 100).upper())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"frames", capture_output=True, timeout=60, check=True)
    assert done.stdout == b"FRAMES"


def test_a_guest_whose_stream_is_closed_for_good_ends() -> None:
    code = (
        "import sys, time\n"
        "from enclaved.agent.guest.attached import AttachedLink\n"
        "from enclaved.agent.guest.loop import Loop\n"
        "link = AttachedLink(Loop(), 0.0)\n"
        "link.connect()\n"
        "link.loop.run(lambda: None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"", timeout=60, check=False)
    assert done.returncode == 0
