"""What user code writes to the socket of its own interpreter changes no verdict, and never that of the next call."""

from __future__ import annotations

import pytest

from enclaved.model import SignalSender, Verdict
from tests.service.guest.laboratory import Box, ended, printed
from tests.service.guest.wire import wire_guest

SAY = "import os\ndef say(text): os.write(3, bytes([0, 0, 0, len(text)]) + text)\n"
GARBAGE = {
    "no frame": "import os\nos.write(3, b'\\xff' * 100)\n",
    "no object": SAY + "say(b'[]')\n",
    "an end of a later call": SAY + 'say(b\'{"done": true, "call": 99}\')\n',
    "an end without a number": SAY + "say(b'{\"done\": true}')\n",
    "a failed preparation": SAY + 'say(b\'{"failed": "forged"}\')\n',
    "very much": "import os\nfor _ in range(200): os.write(3, b'\\xff' * 65536)\n",
}
FORGED_END = """
import json, os, struct, time
text = json.dumps({"done": True, "call": 1, "exit_code": 0, "exception": None, "usage": {}}).encode()
os.write(3, struct.pack(">I", len(text)) + text)
kept = 1
"""


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_program_of_its_own_ends_as_it_ends_whatever_it_writes(box: Box, garbage: str) -> None:
    result = await box.isolated(GARBAGE[garbage] + "print('well')\nraise SystemExit(7)")
    finished = ended(result)
    assert (finished.verdict, finished.exit_code, finished.signal) == (Verdict.EXITED, 7, None)
    assert result.stdout == b"well\n"
    finished = ended(await box.isolated(GARBAGE[garbage] + "os.kill(os.getpid(), 15)"))
    assert (finished.verdict, finished.signal, finished.signal_sender) == (Verdict.SIGNALED, 15, None)


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_context_whose_end_cannot_be_known_is_ended_and_the_next_call_is_well(box: Box, garbage: str) -> None:
    finished = ended(await box.python(GARBAGE[garbage] + "import time\ntime.sleep(600)"))
    assert (finished.verdict, finished.signal) == (Verdict.SIGNALED, 9)
    assert finished.signal_sender is SignalSender.DAEMON
    assert "its interpreter's own socket" in finished.message
    assert (finished.attested, finished.state_preserved) == (True, False)
    result = await box.python("print('well')")
    finished = ended(result)
    assert (finished.verdict, finished.exit_code, printed(result)) == (Verdict.EXITED, 0, "well\n")


async def test_a_thread_that_writes_nonsense_between_two_calls_spoils_no_other_call(box: Box) -> None:
    code = "import os, threading\nread, write = os.pipe()\n"
    code += "def spoil():\n    os.read(read, 1)\n    os.write(3, b'\\xff' * 100)\n"
    code += "threading.Thread(target=spoil, daemon=True).start()\n"
    assert ended(await box.python(code)).verdict is Verdict.EXITED
    finished = ended(await box.python("os.write(write, b'x')\nimport time\ntime.sleep(600)"))
    assert (finished.verdict, finished.signal_sender) == (Verdict.SIGNALED, SignalSender.DAEMON)
    assert ended(await box.python("'write' in globals() and 1 / 0")).verdict is Verdict.EXITED


async def test_a_call_after_one_that_forged_its_end_has_an_end_of_its_own(box: Box) -> None:
    finished = ended(await box.python(FORGED_END + "time.sleep(0.2)"))
    assert (finished.verdict, finished.exit_code, finished.attested) == (Verdict.EXITED, 0, False)
    result = await box.python("print('well', kept)\nraise SystemExit(5)")
    finished = ended(result)
    assert (finished.verdict, finished.exit_code, finished.signal) == (Verdict.EXITED, 5, None)
    assert result.stdout == b"well 1\n"


async def test_an_end_that_comes_before_the_nonsense_counts(box: Box) -> None:
    finished = ended(await box.python("import os\nos.write(3, b'\\xff' * 100)\nos._exit(3)"))
    assert (finished.verdict, finished.exit_code) in [(Verdict.EXITED, 3), (Verdict.SIGNALED, None)]
    assert finished.signal_sender is (SignalSender.DAEMON if finished.signal else None)


async def test_a_call_that_was_cancelled_in_the_queue_claims_nothing_of_its_context() -> None:
    async with wire_guest() as guest:
        running = guest.python("import time\nprint('begun', flush=True)\ntime.sleep(600)", context="default")
        await guest.written(running, b"begun")
        waiting = guest.python("print('never')", context="default")
        guest.send("cancel", execution=waiting.name)
        end = await guest.end(waiting)
        assert (end["cause"], end["attested"], end["state_preserved"]) == ("cancel", False, None)


async def test_a_process_that_cannot_become_the_user_is_no_program_that_was_killed() -> None:
    async with wire_guest(uid=-1) as guest:
        run = guest.shell("echo ran")
        end = await guest.end(run)
        assert (end["cause"], end["reason"]) == ("unprepared", "RuntimeError: could not become user -1")
        assert run.output() == b""
