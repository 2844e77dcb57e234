"""Daemons are killed in the middle of calls in a pool: no call ever meets what another one left, and nothing leaks."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import pool_service_pb2 as pool_pb
from ms_enclave.v1 import pool_service_pb2_grpc as pool_grpc
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import sandbox_service_pb2_grpc as sandbox_grpc

from tests.integration.failures.ground import DaemonProcess, Ground
from tests.service.recovery import until

KILLS = 3
CLIENTS = 4
CALLS_BETWEEN_KILLS = 6
PATIENCE_S = 120.0
LEAVES_TRACES = """
import os
print(sorted(os.listdir('.')), os.path.exists('/tmp/x'), 'z' in globals())
z = 1
open('f', 'w').close()
open('/tmp/x', 'w').close()
"""
AS_NEW = b"[] False False\n"
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED)


@pytest.fixture
def ground(default_image: str) -> Iterator[Ground]:
    made = Ground()
    try:
        yield made
    finally:
        made.clear()


class Client:
    """Calls again and again in the pool, and repeats under the same id what a killed daemon has cut."""

    def __init__(self, number: int, ground: Ground) -> None:
        self.number, self.ground = number, ground
        self.answers: list[bytes] = []
        self.address = ""
        self.stopped = False

    async def work(self) -> None:
        while not self.stopped:
            spec = execution_pb.ExecutionSpec(
                tool="python_executor",
                execution_id=f"c{self.number}-{len(self.answers)}",
                parameters_json=json.dumps({"code": LEAVES_TRACES}),
            )
            try:
                async with aio.insecure_channel(self.address) as channel:
                    stub: Any = pool_grpc.PoolServiceStub(channel)
                    answer = await stub.RunInPool(pool_pb.RunInPoolRequest(pool_id="p", spec=spec), wait_for_ready=True)
            except aio.AioRpcError as error:
                if error.code() not in AWAY:
                    raise
            else:
                self.answers.append(answer.run.stdout)


async def test_killed_daemons_mix_no_calls_and_leave_nothing(ground: Ground) -> None:
    async with asyncio.timeout(PATIENCE_S):
        daemon = await ground.daemon("--daemon-keep-sandboxes-on-stop", "true")
        async with aio.insecure_channel(daemon.address) as channel:
            stub: Any = pool_grpc.PoolServiceStub(channel)
            spec = sandbox_pb.SandboxSpec(memory_limit_bytes=192 * 1024 * 1024)
            await stub.InitializePool(pool_pb.InitializePoolRequest(pool_id="p", size=2, spec=spec))
        clients = [Client(number, ground) for number in range(CLIENTS)]
        for client in clients:
            client.address = daemon.address
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(client.work())
            for _ in range(KILLS):
                await answered(clients, CALLS_BETWEEN_KILLS)
                daemon.send(signal.SIGKILL)
                await daemon.ended()
                daemon = await ground.daemon("--daemon-keep-sandboxes-on-stop", "true")
            await answered(clients, CALLS_BETWEEN_KILLS)
            for client in clients:
                client.stopped = True
        assert {answer for client in clients for answer in client.answers} == {AS_NEW}
        await only_members_are_there(daemon)
        daemon.send(signal.SIGTERM)
        await daemon.ended()


async def answered(clients: list[Client], more: int) -> None:
    """Waits until the clients together have so many more answers."""
    wanted = sum(len(client.answers) for client in clients) + more

    async def enough() -> bool:
        return sum(len(client.answers) for client in clients) >= wanted

    await until(enough)


async def only_members_are_there(daemon: DaemonProcess) -> None:
    """Waits until the pool has its two members, and deletes it: then no sandbox is left."""
    async with aio.insecure_channel(daemon.address) as channel:
        pools: Any = pool_grpc.PoolServiceStub(channel)
        sandboxes: Any = sandbox_grpc.SandboxServiceStub(channel)

        async def listed() -> set[str]:
            found = await sandboxes.ListSandboxes(sandbox_pb.ListSandboxesRequest())
            return {sandbox.id for sandbox in found.sandboxes}

        async def are_alone() -> bool:
            pool = (await pools.GetPool(pool_pb.GetPoolRequest(pool_id="p"))).pool
            return len(pool.members) == 2 and {member.sandbox_id for member in pool.members} == await listed()

        async def are_gone() -> bool:
            return not await listed()

        await until(are_alone)
        await pools.DeletePool(pool_pb.DeletePoolRequest(pool_id="p"))
        await until(are_gone)
