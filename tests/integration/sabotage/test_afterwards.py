"""What the operator may do without, what an image may lack, and an engine that becomes weaker while it is in use."""

from __future__ import annotations

import asyncio
import io
import re
import tarfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import aiodocker
import pytest
from grpc import aio
from ms_enclave.v1 import system_service_pb2 as system_pb

from enclaved.daemon import Unprotected
from tests.integration.sabotage.lying import Lies, lying_engine
from tests.integration.sabotage.test_refused_at_start import host
from tests.service.daemons import PATIENCE_S, Running, daemon, settings_in, short_directory

EFFECTIVE, WAIVED = system_pb.Protection.STATE_EFFECTIVE, system_pb.Protection.STATE_WAIVED


async def states_of(running: Running) -> dict[str, int]:
    """What the daemon says of its protections."""
    info = await running.system_stub.GetInfo(system_pb.GetInfoRequest())
    return {one.name: one.state for one in info.protections}


async def test_a_waived_protection_is_named_and_all_others_stay_required(default_image: str) -> None:
    lies = Lies(create=host(OomScoreAdj=0))
    async with short_directory() as folder, lying_engine(folder, lies) as url:
        settings = settings_in(folder, engine__url=url, waive__protections="oom_preference")
        async with daemon(settings, runtime=None) as running:
            found = await states_of(running)
            assert found["oom_preference"] == WAIVED
            assert found["capabilities"] == EFFECTIVE
            _, text = await running.get("/metrics")
            assert 'enclaved_protection{name="oom_preference",state="waived"} 1.0' in text
            assert 'state="failed"' not in text
        lies.create = host(OomScoreAdj=0, Ulimits=[])
        with pytest.raises(Unprotected, match="process_limits"):
            async with daemon(settings, runtime=None):
                pass


async def test_a_ceiling_that_is_required_and_missing_is_refused(default_image: str) -> None:
    async with short_directory() as folder:
        settings = settings_in(folder, ceiling__required="true")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "enclaved.runtime.docker.inspection.PARENTS", {"cgroupfs": f"no-such-group-{uuid.uuid4().hex}"}
            )
            with pytest.raises(Unprotected, match="ceiling: the control group above all sandboxes cannot be seen"):
                async with daemon(settings, runtime=None):
                    pass


async def test_an_engine_that_comes_back_weaker_gets_no_new_sandboxes_and_a_mended_one_does(default_image: str) -> None:
    lies = Lies()
    async with (
        short_directory() as folder,
        lying_engine(folder, lies) as url,
        daemon(settings_in(folder, engine__url=url), runtime=None) as running,
    ):
        await running.create("before")
        lies.create = host(OomScoreAdj=0)
        await cut(running, lies, gaps=1)
        with pytest.raises(aio.AioRpcError, match="oom_preference"):
            await running.create("weak")
        lies.create = Lies().create
        await cut(running, lies, gaps=2)
        await running.create("after")


async def cut(running: Running, lies: Lies, gaps: int) -> None:
    """Cuts the engine's connections, and waits until the daemon has noticed."""

    async def has_noticed() -> bool:
        lies.cut()  # each time: it may be about to connect again
        metrics = (await running.get("/metrics"))[1]
        counted = re.search(r"^enclaved_engine_event_gaps_total ([0-9]+)", metrics, re.MULTILINE)
        return counted is not None and int(counted[1]) >= gaps

    await eventually(has_noticed)


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Looks until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.05)


@pytest.fixture
async def without_ctypes(default_image: str) -> AsyncIterator[str]:
    """An image whose Python cannot put a filter on anything."""
    tag = f"enclaved-test/{uuid.uuid4().hex}:1"
    text = f"FROM {default_image}\nRUN find / -xdev -name '_ctypes*.so' -delete\n".encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo("Dockerfile")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    packed.seek(0)
    async with aiodocker.Docker() as docker:
        await docker.images.build(fileobj=packed, encoding="gzip", tag=tag)
        try:
            yield tag
        finally:
            await docker.images.delete(tag, force=True)


async def test_nothing_runs_in_an_image_whose_python_can_set_no_filter(without_ctypes: str) -> None:
    async with (
        short_directory() as folder,
        daemon(
            settings_in(folder, images__default=without_ctypes, sandbox__guest_runtime=str(folder)), runtime=None
        ) as running,
    ):
        assert set((await states_of(running)).values()) == {system_pb.Protection.STATE_UNKNOWN}
        with pytest.raises(aio.AioRpcError, match="ctypes"):
            await running.create("box")


async def test_a_daemon_whose_engine_is_away_serves_once_a_canary_has_passed(default_image: str) -> None:
    async with short_directory() as folder, lying_engine(folder, Lies()):
        away = folder / "away.sock"
        async with daemon(settings_in(folder, engine__url=f"unix://{away}"), runtime=None) as running:
            assert set((await states_of(running)).values()) == {system_pb.Protection.STATE_UNKNOWN}
            away.symlink_to(folder / "engine.sock")

            async def has_passed() -> bool:
                return (await states_of(running))["capabilities"] == EFFECTIVE

            await eventually(has_passed)
            await running.create("box")


async def test_a_daemon_whose_engine_comes_without_protections_ends(default_image: str) -> None:
    async with short_directory() as folder, lying_engine(folder, Lies(create=host(Ulimits=[]))):
        away = folder / "away.sock"
        serving = daemon(settings_in(folder, engine__url=f"unix://{away}"), runtime=None)
        running = await serving.__aenter__()
        async with asyncio.timeout(PATIENCE_S):
            away.symlink_to(folder / "engine.sock")
            await asyncio.wait([running.task])
        with pytest.raises(Unprotected, match="process_limits"):
            await serving.__aexit__(None, None, None)
