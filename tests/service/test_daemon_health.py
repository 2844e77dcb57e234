"""Health over HTTP and gRPC, as the engine really is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ms_enclave.v1 import execution_service_pb2 as execution_pb

from enclaved.core import engine as engine_module
from enclaved.errors import EngineUnavailable
from enclaved.model import EngineInfo
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.daemons import PATIENCE_S, Running, daemon, python, settings_in, short_directory

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
NEED_ENGINE = ("", *(f"ms_enclave.v1.{name}Service" for name in ("Sandbox", "Pool", "Image")))
NEED_NONE = tuple(f"ms_enclave.v1.{name}Service" for name in ("Execution", "File", "Tool", "System"))


class Engine(SubprocessRuntime):
    """A runtime whose engine may be away; its sandboxes go on, as with Docker's live-restore."""

    away = False

    async def info(self) -> EngineInfo:
        if self.away:
            raise EngineUnavailable("test://", "it is away")
        return await super().info()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(engine_module, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(engine_module, "LOOK_EVERY_WHILE_AWAY_S", 0.02)
    return Engine()


@pytest.fixture
async def running(engine: Engine) -> AsyncIterator[Running]:
    async with short_directory() as folder, daemon(settings_in(folder), runtime=engine) as running:
        yield running


async def check(running: Running, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(running.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def becomes(running: Running, status: int) -> None:
    """Waits until the daemon as a whole has a health."""
    call = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest())
    async with asyncio.timeout(PATIENCE_S):
        while (await call.read()).status != status:
            pass
    call.cancel()


async def test_what_needs_the_engine_is_served_while_it_answers(running: Running, engine: Engine):
    await becomes(running, SERVING)
    assert {await check(running, service) for service in (*NEED_ENGINE, *NEED_NONE)} == {SERVING}
    assert await running.get("/readyz") == (200, "ok\n")

    engine.away = True
    await becomes(running, NOT_SERVING)
    assert {await check(running, service) for service in NEED_ENGINE} == {NOT_SERVING}
    assert {await check(running, service) for service in NEED_NONE} == {SERVING}
    assert await running.get("/readyz") == (503, "the engine does not answer\n")
    assert await running.get("/healthz") == (200, "ok\n")

    engine.away = False
    await becomes(running, SERVING)
    assert await running.get("/readyz") == (200, "ok\n")


async def test_a_sandbox_that_runs_serves_on_while_the_engine_is_away(running: Running, engine: Engine):
    await running.create()
    engine.away = True
    await becomes(running, NOT_SERVING)
    response = await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print(1)")))
    assert response.stdout == b"1\n"


async def test_a_daemon_that_stops_is_neither_healthy_nor_ready(running: Running):
    await running.create()
    await becomes(running, SERVING)
    call = running.execution_stub.Execute()
    await call.write(execution_pb.ExecuteRequest(start=python("input()", stdin=True)))
    assert (await call.read()).event.WhichOneof("event") == "started"
    running.stop.ask("the test")
    await becomes(running, NOT_SERVING)
    assert {await check(running, service) for service in (*NEED_ENGINE, *NEED_NONE)} == {NOT_SERVING}
    assert await running.get("/healthz") == (503, "stopping\n")
    assert await running.get("/readyz") == (503, "stopping\n")
    running.stop.ask("the test, again")


async def test_before_the_first_answer_of_the_engine_a_daemon_is_not_ready():
    async with short_directory() as folder:
        settings = settings_in(folder, engine__url=f"unix://{folder}/no-engine.sock")
        async with daemon(settings, runtime=None) as running:
            assert await check(running, "") == NOT_SERVING
            assert (await running.get("/readyz"))[0] == 503
