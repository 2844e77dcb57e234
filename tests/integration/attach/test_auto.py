"""An engine with files of its own, as one on another host has: the first sandbox shows how to reach it."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import pytest
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import system_service_pb2 as system_pb

from tests.integration.engine.private import PrivateEngine, private_engine
from tests.integration.failures.ground import Ground
from tests.integration.failures.test_killed_daemons import SLOW, at, create, follow, killed, start
from tests.service.daemons import python


@pytest.fixture
async def engine(ground: Ground, default_image: str) -> AsyncIterator[PrivateEngine]:
    """An engine in whose mount namespace the directory of the daemons is empty."""
    async with private_engine() as made:
        made.in_its_mounts("mount", "-t", "tmpfs", "tmpfs", str(ground.folder))
        yield made


async def test_the_canary_shows_that_the_engine_sees_no_file_of_ours(ground: Ground, engine: PrivateEngine) -> None:
    flags = ("--engine-url", engine.url, "--engine-channel", "auto")
    first = await ground.daemon(*flags)
    async with at(first) as stubs:
        assert '"engine does not see our files"' in first.text
        assert (await stubs.system.GetInfo(system_pb.GetInfoRequest())).engine.channel == "attach"
        await create(stubs)
        head = await start(stubs, python(SLOW, execution_id="run"), 50_000)
        await killed(first)
    second = await ground.daemon(*flags)
    async with at(second) as stubs:
        tail, finished = await follow(stubs, "run", len(head))
        assert finished.verdict == pb.VERDICT_EXITED
        assert (head + tail).count(b"\n") == 4000
    second.send(signal.SIGTERM)
    assert await second.ended() == 0
    second.check_log()
    assert await engine.containers() == []
