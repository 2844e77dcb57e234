"""Every method of the contract with messages made at random: nothing breaks, and nothing is our fault."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc import aio
from hypothesis import settings

from tests.service.daemons import PATIENCE_S
from tests.service.hostile.fuzzing import message_for, methods, path_of
from tests.service.hostile.process import MIB, Served, daemon_process

OUR_FAULT = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNAVAILABLE}
QUICK = 5000
FULL = 100_000
AT_ONCE = 32
FLAGS = {
    "limits__sandboxes_max": "3",
    "limits__timeout_max_s": "1",
    "limits__timeout_default_s": "1",
    "limits__executions_per_sandbox_max": "8",
}


def messages() -> int:
    """How many messages a run sends: many more with the profile "full"."""
    return FULL if settings().max_examples > 1000 else QUICK


async def outcome(served: Served, method: MethodDescriptor, data: bytes) -> grpc.StatusCode:
    """Sends one message, takes one answer if it comes soon, and goes away."""
    call: Any = served.channel.stream_stream(path_of(method))(timeout=1)
    try:
        await call.write(data)
        await call.done_writing()
        await call.read()
    except (aio.AioRpcError, asyncio.InvalidStateError):
        pass
    finally:
        call.cancel()
    async with asyncio.timeout(PATIENCE_S):
        return grpc.StatusCode(await call.code())


@pytest.mark.timeout(7200)
async def test_no_message_breaks_the_daemon_or_makes_it_fail():
    rng = random.Random(20)
    every = [*methods()]
    outcomes: Counter[tuple[str, grpc.StatusCode]] = Counter()
    async with daemon_process(**FLAGS) as served:
        await served.create()
        left = messages()

        async def send() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                method = every[left % len(every)]
                outcomes[path_of(method), await outcome(served, method, message_for(method, rng))] += 1

        for warm in every * 10:
            await outcome(served, warm, message_for(warm, rng))
        before = served.memory_bytes()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(send())
        assert {path for path, _ in outcomes} == {path_of(method) for method in every}
        assert {found: count for found, count in outcomes.items() if found[1] in OUR_FAULT} == {}
        assert served.memory_bytes() - before < 64 * MIB
        assert await served.answers()
