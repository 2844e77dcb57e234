"""A daemon that says nonsense: the guest drops the connection, comes back, and everything in it goes on."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.cases import cases
from tests.mutations import Frame, mutated
from tests.service.guest.laboratory import PATIENCE_S, Box, Laboratory, laboratory, printed

BOXES = 4
CASES_AT_ONCE = 1000
"""So many conversations until there are new sandboxes."""
LOOK_EVERY = 50
"""After so many conversations it is tried whether the guest works."""
GROWTH_BYTES = 32 * 1024 * 1024
JOBS = (
    {"kind": "command", "argv": ["true"], "shell": None, "env": {}},
    {"kind": "command", "argv": None, "shell": "cat; kill -9 $$", "env": {}},
    {"kind": "python", "code": "print(1)", "env": {}},
    {"kind": "file", "operation": "read", "path": "/etc/hostname"},
)


def conversation(chance: random.Random, number: int) -> list[Frame]:
    """What a daemon may well say of an execution, from its start to its end."""
    told: dict[str, Any] = {"execution": f"fuzz{number}:1"}
    job = json.dumps(chance.choice(JOBS)).encode()
    run: dict[str, Any] = {
        "type": "run",
        **told,
        "context": chance.choice((None, None, "default")),
        "timeout_s": chance.choice((0.2, 1.0, 5)),
        "output_limit_bytes": chance.choice((None, 100)),
        "stdin": chance.random() < 0.5,
        "merge_stderr": chance.random() < 0.5,
        "job_bytes": len(job),
        "subscribe": {"reader": 1, "offsets": {}, "credit_bytes": 131072},
    }
    if chance.random() < 0.2:
        run |= {"terminal": [24, 80], "idle_timeout_s": 1.0, "keep_last_bytes": 4096, "context": None}
    said: list[Frame] = []
    if chance.random() < 0.5:
        said.append((run, job))
    said += [chance.choice(_LATER)(told) for _ in range(chance.randrange(1, 6))]
    return said


_LATER = (
    lambda told: ({"type": "job", **told}, b"{}"),
    lambda told: ({"type": "subscribe", **told, "reader": 2, "offsets": {"1": 0}, "credit_bytes": 1000}, b""),
    lambda told: ({"type": "credit", **told, "reader": 1, "bytes": 1000}, b""),
    lambda told: ({"type": "unsubscribe", **told, "reader": 1}, b""),
    lambda told: ({"type": "acknowledge", **told, "offsets": {"1": 1, "2": 0}}, b""),
    lambda told: ({"type": "stdin", **told, "offset": 0}, b"input\n"),
    lambda told: ({"type": "end_of_input", **told}, b""),
    lambda told: ({"type": "signal", **told, "number": 15, "leader_only": False}, b""),
    lambda told: ({"type": "resize", **told, "rows": 10, "columns": 20}, b""),
    lambda told: ({"type": "sample", **told, "number": 1}, b""),
    lambda told: ({"type": "watch_input", **told}, b""),
    lambda told: ({"type": "cancel", **told}, b""),
    lambda told: ({"type": "open_context", "number": 1, "name": "other"}, b""),
    lambda told: ({"type": "reset_context", "number": 2, "name": "other"}, b""),
    lambda told: ({"type": "close_context", "number": 3, "name": "other"}, b""),
    lambda told: ({"type": "list_contexts", "number": 4}, b""),
    lambda told: ({"type": "ping", "number": 5}, b""),
)


@pytest.mark.timeout(3000)
async def test_no_conversation_harms_the_guest() -> None:
    for start in range(0, cases(CASES_AT_ONCE), CASES_AT_ONCE):
        async with laboratory() as lab, asyncio.TaskGroup() as group:
            for number in range(BOXES):
                group.create_task(survive(lab, range(start + number, start + CASES_AT_ONCE, BOXES)))


async def survive(lab: Laboratory, seeds: range) -> None:
    """Has a daemon say what it should not, again and again, and looks at what that does."""
    box = await lab.box()
    assert printed(await box.python("x = 'kept'")) == ""
    before = resident_bytes(box)
    assert box.record.container_id is not None
    last_words = lab.runtime._containers[box.record.container_id].tail
    for number, seed in enumerate(seeds, 1):
        chance = random.Random(seed)
        try:
            await speak(box, mutated(conversation(chance, seed % 64), chance))
        except TimeoutError as error:
            raise AssertionError(
                f"with seed {seed} the guest does not come back: {last_words.text()[-1500:]}"
            ) from error
        if number % LOOK_EVERY == 0:
            await works(box, seed)
    await works(box, seeds.stop)
    assert resident_bytes(box) - before <= GROWTH_BYTES


async def speak(box: Box, data: bytes) -> None:
    """Sends bytes to the guest, drops the connection if it has not, and waits until the guest is back."""
    link = box.record.link
    assert link is not None
    assert link._peer is not None
    link._peer.write(data)
    link._peer.abort()
    async with asyncio.timeout(PATIENCE_S):
        await link.wait_connected()


async def works(box: Box, seed: int) -> None:
    """The guest runs programs, also after all that it runs was ended."""
    link = box.record.link
    assert link is not None
    async with asyncio.timeout(PATIENCE_S):
        await link.park()
        assert printed(await box.shell("echo here")) == "here\n", f"with seed {seed}"


def resident_bytes(box: Box) -> int:
    """The memory of the guest."""
    pages = Path(f"/proc/{box.guest_pid()}/statm").read_text().split()[1]
    return int(pages) * 4096
