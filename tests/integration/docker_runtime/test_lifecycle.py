"""Containers from their making to their removal, on a real engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from enclaved.errors import EngineRefused, ImageNotFound, ImageUnusable, InvalidRequest
from enclaved.runtime.base import STDERR_TAIL_BYTES, ContainerStatus

pytestmark = pytest.mark.docker

GONE = "f" * 64


async def test_the_engine_says_what_it_is(runtime):
    info = await runtime.info()
    assert info.name == "docker"
    assert info.available
    assert info.version
    assert info.cgroup_version in (1, 2)


async def test_a_container_is_made_started_looked_at_and_removed(workshop):
    runtime = workshop.runtime
    container_id = await runtime.create(workshop.plan())
    created = await runtime.status(container_id)
    async with runtime.starting(container_id):
        running = await runtime.status(container_id)
    after = await runtime.status(container_id)
    await runtime.remove(container_id)

    assert created == ContainerStatus(running=False, paused=False, exit_code=None, oom_killed=False, error="")
    assert running == after == replace(created, running=True, pid=running.pid)
    assert (created.pid, running.pid > 0) == (0, True)
    assert await runtime.status(container_id) is None
    assert await workshop.ours() == []


async def test_the_end_of_a_guest_is_told_with_its_exit_code_and_its_last_words(workshop):
    plan = workshop.plan("import sys; sys.stderr.write('no such socket\\n'); sys.exit(3)")
    container_id = await workshop.runtime.create(plan)
    async with workshop.runtime.starting(container_id) as stderr:
        await workshop.ended(container_id)
        status = await workshop.runtime.status(container_id)
        assert stderr.text() == "no such socket\n"
    assert status is not None
    assert (status.running, status.exit_code) == (False, 3)


async def test_only_the_last_of_a_long_standard_error_is_kept(workshop):
    text = await workshop.run(workshop.plan("import sys\nfor n in range(100_000): print(n, file=sys.stderr)"))
    assert len(text) == STDERR_TAIL_BYTES
    assert text.endswith("\n99998\n99999\n")


async def test_a_guest_whose_attachment_has_ended_can_write_on(workshop):
    """Nobody reads any more, and more than a pipe or a buffer holds goes through."""
    guest = "import sys\nfor n in range(64): sys.stderr.write('x' * 65536)\nsys.exit(5)"
    container_id = await workshop.runtime.create(workshop.plan(guest))
    async with workshop.runtime.starting(container_id):
        pass
    await workshop.ended(container_id)
    status = await workshop.runtime.status(container_id)
    assert status is not None
    assert status.exit_code == 5


async def test_an_exception_in_the_block_comes_out_as_it_is_and_nothing_stays_attached(workshop):
    before = asyncio.all_tasks()
    container_id = await workshop.runtime.create(workshop.plan())
    with pytest.raises(TimeoutError, match="the caller's own"):
        async with workshop.runtime.starting(container_id):
            raise TimeoutError("the caller's own")
    assert asyncio.all_tasks() == before


async def test_a_start_can_be_cancelled_at_any_point(workshop):
    runtime = workshop.runtime
    before = asyncio.all_tasks()

    async def start(container_id: str) -> None:
        async with runtime.starting(container_id):
            await asyncio.Event().wait()

    for turns in (0, 1, 16, 64, 256, 1024, 4096):
        container_id = await runtime.create(workshop.plan())
        starting = asyncio.create_task(start(container_id))
        await _turns(turns)
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled()
        await runtime.remove(container_id)
    assert asyncio.all_tasks() == before
    assert await workshop.ours() == []


async def test_a_create_that_is_cancelled_leaves_nothing_behind(workshop):
    runtime = workshop.runtime
    for turns in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256):
        creating = asyncio.create_task(runtime.create(workshop.plan()))
        await _turns(turns)
        creating.cancel()
        await asyncio.wait([creating])
        if not creating.cancelled():  # It was done before.
            await runtime.remove(creating.result())
        assert await workshop.ours() == []


async def test_a_create_that_is_cancelled_twice_leaves_nothing_behind(workshop):
    creating = asyncio.create_task(workshop.runtime.create(workshop.plan()))
    await _turns(20)
    creating.cancel()
    await _turns(2)
    creating.cancel()
    await asyncio.wait([creating])
    await workshop.runtime.close()  # Waits for what is left to do.
    assert await workshop.ours() == []


async def test_a_second_container_of_one_sandbox_is_refused_and_the_first_unharmed(workshop):
    plan = workshop.plan()
    async with workshop.running(plan) as container_id:
        with pytest.raises(EngineRefused, match="already in use"):
            await workshop.runtime.create(plan)
        status = await workshop.runtime.status(container_id)
    assert status is not None
    assert status.running


async def test_a_sandbox_can_have_another_container_once_the_first_is_removed(workshop):
    plan = workshop.plan()
    first = await workshop.runtime.create(plan)
    await workshop.runtime.remove(first)
    async with workshop.running(plan) as second:
        assert second != first


async def test_a_guest_file_that_the_engine_cannot_see_is_refused_and_not_created(workshop):
    plan = workshop.plan()
    plan.guest_file.unlink()
    with pytest.raises(EngineRefused, match=r"guest\.py"):
        await workshop.runtime.create(plan)
    assert not plan.guest_file.exists()
    assert await workshop.ours() == []


async def test_an_image_that_is_gone_by_now_is_named(workshop):
    image = replace(workshop.image, id="sha256:" + "e" * 64, name="python:gone")
    with pytest.raises(ImageNotFound, match="python:gone"):
        await workshop.runtime.create(workshop.plan(image=image))


async def test_an_image_without_python_is_unusable_and_named(workshop, build):
    tag = await build("FROM scratch\nLABEL without=python")
    image = await workshop.runtime.resolve_image(tag, may_pull=False)
    container_id = await workshop.runtime.create(workshop.plan(image=image))
    with pytest.raises(ImageUnusable, match="no python3") as caught:
        async with workshop.runtime.starting(container_id):
            pytest.fail("started an image without Python")
    assert caught.value.image == tag
    await workshop.runtime.remove(container_id)


async def test_removing_is_idempotent_also_when_many_do_it_at_once(workshop):
    async with workshop.running(workshop.plan()) as container_id:
        await asyncio.gather(*(workshop.runtime.remove(container_id) for _ in range(5)))
    await workshop.runtime.remove(container_id)
    await workshop.runtime.remove(GONE)
    assert await workshop.ours() == []


async def test_a_paused_container_is_seen_and_can_be_removed(workshop):
    async with workshop.running(workshop.plan()) as container_id:
        await workshop.engine.containers.container(container_id).pause()
        status = await workshop.runtime.status(container_id)
        records = await workshop.runtime.list_records()
        await workshop.runtime.remove(container_id)
    assert status is not None
    assert (status.running, status.paused) == (True, True)
    assert [r.running for r in records if r.id == container_id] == [True]
    assert await workshop.ours() == []


async def test_containers_are_listed_with_their_labels_whether_they_run_or_not(workshop):
    created = workshop.plan()
    running = workshop.plan()
    created_id = await workshop.runtime.create(created)
    async with workshop.running(running) as running_id:
        records = {r.id: r for r in await workshop.runtime.list_records()}
    assert (records[created_id].running, records[running_id].running) == (False, True)
    assert created.labels.items() <= records[created_id].labels.items()


async def test_a_container_that_is_gone_has_no_status_no_counters_and_does_not_start(runtime):
    assert await runtime.status(GONE) is None
    assert runtime.counters(GONE) is None
    with pytest.raises(EngineRefused, match="No such container"):
        async with runtime.starting(GONE):
            pytest.fail("started what is not there")


@pytest.mark.parametrize("odd", ["", "../images", "F" * 64, "f" * 63, "f" * 65, "f" * 64 + "\n", "enclaved-box-1"])
async def test_nothing_but_an_id_reaches_the_engine(runtime, odd):
    for call in (runtime.status, runtime.remove):
        with pytest.raises(InvalidRequest):
            await call(odd)
    with pytest.raises(InvalidRequest):
        runtime.counters(odd)
    with pytest.raises(InvalidRequest):
        async with runtime.starting(odd):
            pytest.fail("started an odd id")


async def test_many_sandboxes_start_at_once(workshop):
    async def live() -> bool:
        async with workshop.running(workshop.plan()) as container_id:
            status = await workshop.runtime.status(container_id)
        await workshop.runtime.remove(container_id)
        return status is not None and status.running

    assert await asyncio.gather(*(live() for _ in range(6))) == [True] * 6
    assert await workshop.ours() == []


async def _turns(count: int) -> None:
    """Lets the event loop turn so often, to cancel at different points."""
    for _ in range(count):
        await asyncio.sleep(0)
