"""The runtime against an engine that hangs, breaks off, contradicts itself or is something else.

No real engine can be made to do these things at a chosen moment, so a small one on a unix socket stands in.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from enclaved.errors import EngineRefused, EngineUnavailable, ImageUnusable, NoSpace
from enclaved.model import SandboxSpec
from enclaved.runtime.base import LABEL_ID, ContainerPlan, GuestSettings, Image
from enclaved.runtime.docker import Deadlines, DockerRuntime
from enclaved.runtime.docker.options import container_name

ID = "ab" * 32
MIB = 1024 * 1024
SOON_S = 0.2

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FakeEngine:
    """Answers by the table ``answers`` ("POST /containers/create"), else as a healthy engine would."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.containers: set[str] = set()
        self.info: dict[str, Any] = {
            "ServerVersion": "99.0",
            "CgroupDriver": "cgroupfs",
            "CgroupVersion": "1",
            "NCPU": 2,
            "MemoryLimit": True,
            "PidsLimit": True,
            "CpuCfsQuota": True,
            "SecurityOptions": ["name=seccomp,profile=default"],
        }
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)

    async def start(self) -> None:
        await self._runner.setup()
        await web.UnixSite(self._runner, self.socket).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = "/" + request.path.lstrip("/").removeprefix("v1.41/")
        asked = f"{request.method} {path}"
        self.asked.append(asked)
        if (answer := self.answers.get(asked)) is not None:
            return await answer(request)
        if path == "/version":
            return web.json_response({"ApiVersion": "1.41"})
        if path == "/info":
            return web.json_response(self.info)
        if asked == "POST /containers/create":
            self.containers.add(request.query["name"])
            return web.json_response({"Id": ID})
        if path.endswith("/json") and path.startswith("/containers/"):
            name = path.split("/")[2]
            state = {"Status": "created", "Running": False, "Paused": False, "ExitCode": 0, "OOMKilled": False}
            known = name == ID or name in self.containers
            body = {"Id": ID, "State": state, "Config": {"Tty": False}, "Image": "sha256:" + ID}
            return web.json_response(body) if known else error(404, "No such container")
        if request.method == "DELETE":
            self.containers.clear()
            return web.Response(status=204)
        if path.endswith("/start"):
            return web.Response(status=204)
        return error(404, "page not found")


def error(status: int, message: str) -> web.Response:
    """An error as engines give it."""
    return web.json_response({"message": message}, status=status)


async def hang(request: web.Request) -> web.StreamResponse:
    """Never answers."""
    await asyncio.Event().wait()
    raise AssertionError


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeEngine]:
    made = FakeEngine(tmp_path / "e.sock")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., DockerRuntime]]:
    """Makes runtimes on the fake engine, with some deadlines of their own."""
    made: list[DockerRuntime] = []

    def make(**deadlines: float) -> DockerRuntime:
        made.append(DockerRuntime(f"unix://{tmp_path}/e.sock", deadlines=Deadlines(**deadlines)))
        return made[-1]

    yield make
    for runtime in made:
        await runtime.close()


@pytest.fixture
def runtime(make) -> DockerRuntime:
    return make()


@pytest.fixture
def plan(tmp_path: Path) -> ContainerPlan:
    return ContainerPlan(
        image=Image("sha256:" + ID, "some:1", {}, ()),
        spec=SandboxSpec(
            image="some:1",
            memory_limit_bytes=64 * MIB,
            cpu_limit=1.0,
            pids_limit=64,
            working_dir_size_bytes=MIB,
            tmp_size_bytes=MIB,
            shm_size_bytes=MIB,
            working_dir="/sandbox",
            env_vars={},
            tools=None,
            timeout_s=1.0,
            timeout_max_s=1.0,
            ttl_s=1.0,
            remove_on_exit=True,
        ),
        settings=GuestSettings("box", 1900000001, "/sandbox", 60.0, 0.0, 64 * MIB),
        guest_file=tmp_path / "guest.py",
        socket_dir=tmp_path,
        account_dir=tmp_path,
        group_id=0,
        labels={LABEL_ID: "box"},
    )


def calls(runtime: DockerRuntime, plan: ContainerPlan) -> list[Callable[[], Awaitable[object]]]:
    """Every call that asks the engine."""

    async def start() -> None:
        async with runtime.starting(ID):
            pytest.fail("started without an engine")

    return [
        runtime.info,
        lambda: runtime.resolve_image("some:1", may_pull=True),
        lambda: runtime.create(plan),
        start,
        lambda: runtime.status(ID),
        lambda: runtime.remove(ID),
        runtime.list_records,
    ]


async def test_without_an_engine_every_call_says_so_and_how_to_start_one(runtime, plan):
    for call in calls(runtime, plan):
        with pytest.raises(EngineUnavailable, match="systemctl start docker"):
            await call()


async def test_an_engine_that_hangs_fails_every_call_by_its_deadline(make, plan, fake):
    runtime = make(query_s=SOON_S, create_s=SOON_S, start_s=SOON_S, remove_s=SOON_S, pull_s=SOON_S)
    fake.answers["GET /version"] = hang
    for call in calls(runtime, plan):
        with pytest.raises(EngineUnavailable, match="did not answer in time"):
            await call()


async def test_an_engine_that_comes_back_is_found_without_a_restart(tmp_path, runtime):
    with pytest.raises(EngineUnavailable):
        await runtime.info()
    late = FakeEngine(tmp_path / "e.sock")
    await late.start()
    assert (await runtime.info()).version == "99.0"
    await late.stop()
    with pytest.raises(EngineUnavailable):
        await runtime.info()
    again = FakeEngine(tmp_path / "e.sock")
    again.info["ServerVersion"] = "100.0"
    await again.start()
    assert (await runtime.info()).version == "100.0"
    await again.stop()


async def test_a_call_that_fails_does_not_disturb_another_on_the_same_client(runtime, fake):
    released = asyncio.Event()
    arrived = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        arrived.set()
        await released.wait()
        return web.json_response([])

    fake.answers["GET /containers/json"] = slow
    fake.answers["GET /info"] = lambda request: asyncio.sleep(0, error(503, "busy"))
    listing = asyncio.create_task(runtime.list_records())
    await arrived.wait()
    with pytest.raises(EngineUnavailable, match="busy"):
        await runtime.info()
    released.set()
    assert await listing == []


async def test_something_that_is_no_engine_is_told_apart(runtime, fake):
    fake.answers["GET /version"] = lambda request: asyncio.sleep(
        0, web.Response(text="<html>", content_type="application/json")
    )
    with pytest.raises(EngineUnavailable, match="no container engine"):
        await runtime.info()


async def test_an_engine_without_limits_gets_no_sandbox(runtime, plan, fake):
    fake.info["MemoryLimit"] = False
    with pytest.raises(EngineRefused, match="memory limits"):
        await runtime.create(plan)
    assert "POST /containers/create" not in fake.asked


async def test_a_create_whose_answer_never_comes_is_taken_back_by_name(make, plan, fake):
    runtime = make(create_s=SOON_S)

    async def create(request: web.Request) -> web.StreamResponse:
        fake.containers.add(request.query["name"])
        return await hang(request)

    fake.answers["POST /containers/create"] = create
    with pytest.raises(EngineUnavailable):
        await runtime.create(plan)
    assert fake.containers == set()


async def test_a_create_that_is_cancelled_while_the_engine_works_is_taken_back(runtime, plan, fake):
    arrived, released = asyncio.Event(), asyncio.Event()

    async def create(request: web.Request) -> web.StreamResponse:
        arrived.set()
        await released.wait()
        fake.containers.add(request.query["name"])
        return web.json_response({"Id": ID})

    fake.answers["POST /containers/create"] = create
    creating = asyncio.create_task(runtime.create(plan))
    await arrived.wait()
    creating.cancel()
    released.set()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert fake.containers == set()
    assert f"DELETE /containers/{ID}" in fake.asked


async def test_a_removal_in_progress_is_waited_for(runtime, fake):
    fake.answers[f"DELETE /containers/{ID}"] = lambda request: asyncio.sleep(
        0, error(409, f"removal of container {ID} is already in progress")
    )
    waited = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        assert request.query["condition"] == "removed"
        waited.set()
        return web.json_response({"StatusCode": 0})

    fake.answers[f"POST /containers/{ID}/wait"] = wait
    await runtime.remove(ID)
    assert waited.is_set()


async def test_a_removal_in_progress_that_never_ends_is_given_up_by_its_deadline(make, fake):
    runtime = make(remove_s=SOON_S)
    fake.answers[f"DELETE /containers/{ID}"] = lambda request: asyncio.sleep(0, error(409, "already in progress"))
    fake.answers[f"POST /containers/{ID}/wait"] = hang
    with pytest.raises(EngineUnavailable, match="remove a container"):
        await runtime.remove(ID)


async def test_another_conflict_of_a_removal_is_a_refusal(runtime, fake):
    fake.answers[f"DELETE /containers/{ID}"] = lambda request: asyncio.sleep(0, error(409, "no, never"))
    with pytest.raises(EngineRefused, match="no, never"):
        await runtime.remove(ID)


def attach(*pieces: bytes, cut: bool) -> Answer:
    """Attaches, sends pieces of standard error, then breaks off or stays."""

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        for piece in pieces:
            request.transport.write(struct.pack(">BxxxL", 2, len(piece)) + piece)
        if cut:
            # Within a frame that never comes to its end.
            request.transport.write(struct.pack(">BxxxL", 2, 100) + b"half")
            request.transport.close()
        return await hang(request)

    return answer


async def test_an_attachment_that_breaks_ends_the_reading_and_not_the_block(runtime, fake):
    fake.answers[f"POST /containers/{ID}/attach"] = attach(b"some ", b"words", cut=True)
    async with runtime.starting(ID) as stderr:
        status = await runtime.status(ID)  # Waits for the last words.
        assert stderr.text() == "some words"
    assert status is not None


async def test_an_attachment_that_is_refused_is_told_and_nothing_starts(runtime, fake):
    fake.answers[f"POST /containers/{ID}/attach"] = lambda request: asyncio.sleep(0, error(409, "not now"))
    with pytest.raises(EngineRefused, match="not now"):
        async with runtime.starting(ID):
            pytest.fail("started without an attachment")
    assert f"POST /containers/{ID}/start" not in fake.asked


async def test_an_engine_that_answers_an_attachment_without_a_stream_is_told(runtime, fake):
    fake.answers[f"POST /containers/{ID}/attach"] = lambda request: asyncio.sleep(0, web.json_response({}))
    with pytest.raises(EngineRefused, match="upgrade"):
        async with runtime.starting(ID):
            pytest.fail("started without an attachment")


async def test_a_start_that_hangs_lets_go_of_the_attachment(make, fake):
    runtime = make(start_s=SOON_S)
    fake.answers[f"POST /containers/{ID}/attach"] = attach(cut=False)
    fake.answers[f"POST /containers/{ID}/start"] = hang
    before = asyncio.all_tasks()
    with pytest.raises(EngineUnavailable, match="did not answer in time to start"):
        async with runtime.starting(ID):
            pytest.fail("started by an engine that hangs")
    assert {task for task in asyncio.all_tasks() - before if "standard error" in task.get_name()} == set()


async def test_an_image_for_another_system_is_unusable(runtime, fake):
    image = {"Id": "sha256:" + ID, "Os": "windows", "Config": None}
    fake.answers["GET /images/win:1/json"] = lambda request: asyncio.sleep(0, web.json_response(image))
    with pytest.raises(ImageUnusable, match="windows"):
        await runtime.resolve_image("win:1", may_pull=False)


async def test_an_image_without_metadata_is_fine(runtime, fake):
    image = {"Id": "sha256:" + ID, "Os": "", "Config": None}
    fake.answers["GET /images/bare:1/json"] = lambda request: asyncio.sleep(0, web.json_response(image))
    assert await runtime.resolve_image("bare:1", may_pull=False) == Image("sha256:" + ID, "bare:1", {}, ())


async def test_a_pull_that_takes_too_long_fails_by_its_deadline(make, fake):
    runtime = make(pull_s=SOON_S)
    fake.answers["POST /images/create"] = hang
    with pytest.raises(EngineUnavailable, match="pull image some:1"):
        await runtime.resolve_image("some:1", may_pull=True)


async def test_a_pull_onto_a_full_disk_is_told_as_such(runtime, fake):
    fake.answers["POST /images/create"] = lambda request: asyncio.sleep(
        0, web.json_response({"error": "write /x: no space left on device"})
    )
    with pytest.raises(NoSpace, match="no space left on the engine's disk"):
        await runtime.resolve_image("some:1", may_pull=True)


async def test_a_container_of_the_same_name_that_runs_is_not_taken_back(make, plan, fake):
    runtime = make(create_s=SOON_S)
    running = {"Status": "running", "Running": True, "Paused": False, "ExitCode": 0, "OOMKilled": False}
    fake.answers["POST /containers/create"] = hang
    fake.answers[f"GET /containers/{container_name(plan)}/json"] = lambda request: asyncio.sleep(
        0, web.json_response({"Id": ID, "State": running})
    )
    with pytest.raises(EngineUnavailable):
        await runtime.create(plan)
    assert not [asked for asked in fake.asked if asked.startswith("DELETE")]


async def test_a_container_that_cannot_be_frozen_at_this_moment_is_frozen_a_moment_later(
    fake: FakeEngine, runtime: DockerRuntime
):
    asked = f"POST /containers/{ID}/pause"

    async def answer(request: web.Request) -> web.StreamResponse:
        if fake.asked.count(asked) < 3:
            return error(500, "Cannot pause container: OCI runtime pause failed: unable to freeze: unknown")
        return web.Response(status=204)

    fake.answers[asked] = answer
    await runtime.pause(ID)
    assert fake.asked.count(asked) == 3


async def test_a_container_that_can_never_be_frozen_is_refused(fake: FakeEngine, runtime: DockerRuntime):
    async def answer(request: web.Request) -> web.StreamResponse:
        return error(500, "Cannot pause container: OCI runtime pause failed: unable to freeze: unknown")

    fake.answers[f"POST /containers/{ID}/pause"] = answer
    with pytest.raises(EngineRefused, match="unable to freeze"):
        await runtime.pause(ID)
