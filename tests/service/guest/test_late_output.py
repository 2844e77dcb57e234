"""What threads of a context write between two calls."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from enclaved.agent.guest.limits import LATE_BYTES
from tests.service.guest.wire import Run, WireGuest, wire_guest


@pytest.fixture
async def guest() -> AsyncIterator[WireGuest]:
    async with wire_guest() as made:
        yield made


def late(run: Run, channel: int = 1) -> bytes:
    return b"".join(data for header, data in run.chunks if header.get("late") and header["channel"] == channel)


def in_time(run: Run, channel: int = 1) -> bytes:
    return b"".join(data for header, data in run.chunks if "late" not in header and header["channel"] == channel)


THREAD = (
    "import os, sys, threading, time\n"
    "def work():\n"
    "    while not os.path.exists('go'): time.sleep(.005)\n"
    "    {what}\n"
    "    open('gone', 'w').close()\n"
    "threading.Thread(target=work, daemon={daemon}).start()\n"
    "print('call')\n"
)


async def let_it_write(guest: WireGuest) -> None:
    await guest.end(guest.shell("touch go; while [ ! -e gone ]; do sleep .01; done; rm go gone"))


@pytest.mark.parametrize("daemon", [True, False])
async def test_it_opens_the_next_call(guest: WireGuest, daemon: bool) -> None:
    what = "print('later'); print('oh', file=sys.stderr)"
    first = guest.python(THREAD.format(what=what, daemon=daemon), context="default")
    finished = await guest.end(first)
    assert first.output() == b"call\n"
    assert finished["bytes_total"] == {"1": 5, "2": 0}
    await let_it_write(guest)
    second = guest.python("print('next')", context="default")
    finished = await guest.end(second)
    assert (late(second), late(second, 2), in_time(second)) == (b"later\n", b"oh\n", b"next\n")
    assert second.output() == b"later\nnext\n"
    assert finished["bytes_total"] == {"1": 11, "2": 3}
    assert [header["time_s"] for header, _ in second.chunks if header.get("late")] == [0, 0]
    third = guest.python("print('third')", context="default")
    await guest.end(third)
    assert (late(third), third.output()) == (b"", b"third\n")


async def test_what_comes_during_a_call_is_its_own(guest: WireGuest) -> None:
    await guest.end(guest.python(THREAD.format(what="print('from a thread')", daemon=True), context="default"))
    run = guest.python("open('go', 'w')\nwhile not os.path.exists('gone'): time.sleep(.005)", context="default")
    await guest.end(run)
    assert (late(run), in_time(run)) == (b"", b"from a thread\n")


async def test_only_so_much_is_kept_and_the_thread_never_waits(guest: WireGuest) -> None:
    what = "os.write(1, b'first '); [os.write(1, b'x' * 65536) for _ in range(500)]"
    await guest.end(guest.python(THREAD.format(what=what, daemon=True), context="default"))
    await let_it_write(guest)
    run = guest.python("print('next')", context="default", output_limit_bytes=5)
    finished = await guest.end(run)
    assert late(run).startswith(b"first xxx")
    assert LATE_BYTES * 0.9 < len(late(run)) <= LATE_BYTES
    assert (in_time(run), finished["cause"]) == (b"next\n", None)


async def test_a_thread_that_writes_for_ever_holds_up_nothing(guest: WireGuest) -> None:
    code = (
        "import os, threading\n"
        "def flood():\n"
        "    while True: os.write(1, b'noise')\n"
        "threading.Thread(target=flood, daemon=True).start()\n"
    )
    await guest.end(guest.python(code, context="default"))
    for _ in range(5):
        other = guest.command("echo", "through")
        await guest.end(other)
        assert other.output() == b"through\n"
        run = guest.python("pass", context="default")
        assert (await guest.end(run))["exit_code"] == 0
        assert set(run.output().replace(b"noise", b"")) <= set(b"noise")


async def test_user_code_cannot_make_its_output_late_or_late_output_its_own(guest: WireGuest) -> None:
    """It keeps the streams of a call and writes to them in the next one: too late for the one, early for no other."""
    await guest.end(guest.python("import os\nkept = os.dup(1)", context="default"))
    run = guest.python("os.write(kept, b'old stream\\n'); print('new stream')", context="default")
    await guest.end(run)
    assert in_time(run) == b"new stream\n"
    third = guest.python(
        "try: os.write(kept, b'older still')\nexcept BrokenPipeError: print('broken')", context="default"
    )
    await guest.end(third)
    assert in_time(third) == b"broken\n"
    assert late(run) + late(third) in (b"old stream\n", b"")


async def test_the_late_output_of_a_context_that_died_is_not_lost(guest: WireGuest) -> None:
    what = "os.write(2, b'last words\\n'); open('gone', 'w').close(); os._exit(9)"
    await guest.end(guest.python(THREAD.format(what=what, daemon=True), context="default"))
    await let_it_write(guest)
    run = guest.python("print('fresh')", context="default")
    finished = await guest.end(run)
    assert late(run, 2) == b"last words\n"
    assert (in_time(run), finished["fresh_context"]) == (b"fresh\n", True)


async def test_nothing_late_passes_a_park(guest: WireGuest) -> None:
    await guest.end(guest.python(THREAD.format(what="print('secret')", daemon=True), context="default"))
    await let_it_write(guest)
    guest.send("park", number=7)
    await guest.until(lambda: any(frame["type"] == "parked" for frame in guest.frames))
    run = guest.python("print('next owner')", context="default")
    await guest.end(run)
    assert run.output() == b"next owner\n"


async def test_many_calls_leave_no_descriptors_in_the_guest(guest: WireGuest) -> None:
    await guest.end(guest.python("import os; keep = []", context="default"))
    before = len(os.listdir(f"/proc/{guest.guest_pid()}/fd"))
    for _ in range(30):
        await guest.end(guest.python("keep.append(os.dup(1))", context="default"))
    await guest.ping()
    assert len(os.listdir(f"/proc/{guest.guest_pid()}/fd")) <= before + 4


async def test_a_call_that_closed_its_streams_leaves_the_next_one_whole(guest: WireGuest) -> None:
    await guest.end(guest.python("import os\nprint('before', flush=True)\nos.closerange(0, 3)", context="default"))
    run = guest.python("print('after')", context="default")
    finished = await guest.end(run)
    assert (run.output(), finished["exit_code"]) == (b"after\n", 0)


async def test_exit_handlers_and_threads_of_a_program_of_its_own_are_in_time(guest: WireGuest) -> None:
    code = (
        "import atexit, threading, time\n"
        "atexit.register(print, 'at exit')\n"
        "def work():\n"
        "    time.sleep(.1)\n"
        "    print('thread')\n"
        "threading.Thread(target=work).start()\n"
        "print('main')\n"
    )
    run = guest.python(code)
    await guest.end(run)
    assert run.output() == b"main\nthread\nat exit\n"
    assert late(run) == b""
