"""Pools on the real engine: what one call leaves in a container is gone for the next."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import aiodocker
import pytest
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import image_service_pb2 as image_pb
from ms_enclave.v1 import image_service_pb2_grpc, pool_service_pb2_grpc
from ms_enclave.v1 import pool_service_pb2 as pool_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import sandbox_service_pb2_grpc as sandbox_grpc

from enclaved.runtime.base import LABEL_ID
from enclaved.runtime.docker import detect_engine_url
from tests.integration.failures.ground import DaemonProcess, Ground

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def ground(default_image: str) -> Iterator[Ground]:
    made = Ground()
    try:
        yield made
    finally:
        made.clear()


@pytest.fixture(scope="module")
def daemon(ground: Ground) -> Iterator[DaemonProcess]:
    started = asyncio.run(ground.daemon())
    yield started
    started.check_log()


class Pool:
    """A pool with one member."""

    def __init__(self, channel: aio.Channel) -> None:
        self.stub = pool_service_pb2_grpc.PoolServiceStub(channel)  # type: ignore[no-untyped-call]
        self.id = ""
        self.member = ""

    async def make(self, size: int = 1) -> list[str]:
        spec = sandbox_pb.SandboxSpec(memory_limit_bytes=192 * MIB)
        made = await self.stub.InitializePool(pool_pb.InitializePoolRequest(size=size, spec=spec))
        self.id, self.member = made.pool_id, made.sandbox_ids[0]
        return list(made.sandbox_ids)

    async def leases(self) -> list[pool_pb.Lease]:
        """The uses of the member, newest first, once the last reset is over."""
        while True:
            pool = (await self.stub.GetPool(pool_pb.GetPoolRequest(pool_id=self.id))).pool
            if all(member.state == pool_pb.PoolMember.STATE_IDLE for member in pool.members):
                break
            await asyncio.sleep(0.02)
        return list((await self.stub.ListLeases(pool_pb.ListLeasesRequest(pool_id=self.id))).leases)

    async def python(self, code: str) -> str:
        """Runs Python, which must end well, and returns its output."""
        spec = execution_pb.ExecutionSpec(tool="python_executor", parameters_json=json.dumps({"code": code}))
        answer = await self.stub.RunInPool(pool_pb.RunInPoolRequest(pool_id=self.id, spec=spec))
        assert answer.run.finished.exit_code == 0, answer.run
        return str(answer.run.stdout.decode())

    async def run(self, command: str) -> str:
        """Runs a command, which must end well, and returns its output."""
        spec = execution_pb.ExecutionSpec(
            tool="shell_executor", parameters_json=json.dumps({"command": command}), timeout_s=30.0
        )
        answer = await self.stub.RunInPool(pool_pb.RunInPoolRequest(pool_id=self.id, spec=spec))
        assert answer.run.finished.exit_code == 0, answer.run
        return str(answer.run.stdout.decode())

    async def delete(self) -> None:
        await self.stub.DeletePool(pool_pb.DeletePoolRequest(pool_id=self.id))


@pytest.fixture
async def pool(daemon: DaemonProcess) -> AsyncIterator[Pool]:
    async with aio.insecure_channel(daemon.address) as channel:
        made = Pool(channel)
        await made.make()
        yield made
        await made.delete()


async def container_of(engine: aiodocker.Docker, sandbox_id: str) -> str:
    found = await engine.containers.list(all=True, filters={"label": [f"{LABEL_ID}={sandbox_id}"]})
    (container,) = found
    return str(container.id)


async def test_nothing_of_a_call_is_left_for_the_next_and_the_container_stays(pool: Pool) -> None:
    async with aiodocker.Docker(detect_engine_url()) as engine:
        before = await container_of(engine, pool.member)
        await pool.run(
            "echo x > f; mkdir -p a/b; chmod 0 a/b a; echo x > /tmp/f; echo x > /dev/shm/f; "
            "(setsid sleep 600 >/dev/null 2>&1 &); chmod 0777 ."
        )
        look = (
            "ls -A . /tmp /dev/shm; cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep [6]00'; stat -c %a .; true"
        )
        assert await pool.run(look) == ".:\n\n/dev/shm:\n\n/tmp:\n0\n700\n"
        assert await container_of(engine, pool.member) == before


POISONS = {
    "a_full_tmp": "head -c 1G /dev/zero > /tmp/full; true",
    "posix_shared_memory": "echo x > /dev/shm/left",
    "a_message_queue": "python3 -c 'import os; os.close(os.open(\"/dev/mqueue/left\", os.O_CREAT | os.O_RDWR))'; true",
    "a_shared_segment": "python3 -c 'import ctypes; assert ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0'",
    "a_closed_working_directory": "touch f; chmod 0 .",
    "a_daemonised_process": "(setsid sh -c 'while :; do sleep 1; done' >/dev/null 2>&1 &)",
    "an_empty_file_that_was_removed_again": "touch f; rm f",
}


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS.keys())
async def test_what_poisons_a_container_is_gone_and_the_lease_proves_it(pool: Pool, poison: str) -> None:
    await pool.run(poison)
    assert await pool.run("ls -A . /tmp /dev/shm /dev/mqueue | grep -v ':$' | tr -d '\\n'; stat -c %a .") == "700\n"
    for lease in await pool.leases():
        assert (lease.outcome, lease.reason) == (pool_pb.Lease.OUTCOME_CLEAN, "")
        left = {name: value for name, value in fields(lease.proof).items() if name.endswith(("_left", "_changed"))}
        assert set(left.values()) == {0}
        assert len(left) == 7


def fields(proof: pool_pb.ResetProof) -> dict[str, int]:
    return {field.name: int(getattr(proof, field.name)) for field in proof.DESCRIPTOR.fields}


async def test_a_member_whose_container_is_stopped_while_it_is_free_is_replaced_before_anybody_asks(pool: Pool) -> None:
    async with aiodocker.Docker(detect_engine_url()) as engine:
        before = await container_of(engine, pool.member)
        await engine.containers.container(before).stop(t=0)
        while True:
            found = (await pool.stub.GetPool(pool_pb.GetPoolRequest(pool_id=pool.id))).pool
            if found.counters.replaced:
                break
            await asyncio.sleep(0.02)
        assert await pool.run("echo again") == "again\n"
        assert await container_of(engine, pool.member) != before


async def test_a_claimed_member_gets_the_limits_that_its_owner_asks_for(daemon: DaemonProcess, pool: Pool) -> None:
    claim = pool_pb.ClaimRequest(pool_id=pool.id, ttl_s=600.0, memory_limit_bytes=256 * MIB)
    answer = await pool.stub.Claim(claim)
    assert (answer.sandbox.id, answer.sandbox.spec.memory_limit_bytes) == (pool.member, 256 * MIB)
    async with aiodocker.Docker(detect_engine_url()) as engine:
        container = engine.containers.container(await container_of(engine, pool.member))
        assert (await container.show())["HostConfig"]["Memory"] == 256 * MIB
        assert await pool.run("echo next") == "next\n"
        async with aio.insecure_channel(daemon.address) as channel:
            sandboxes = sandbox_grpc.SandboxServiceStub(channel)  # type: ignore[no-untyped-call]
            await sandboxes.DeleteSandbox(sandbox_pb.DeleteSandboxRequest(sandbox_id=pool.member))


async def test_modules_are_there_for_every_call_of_a_warm_pool(daemon: DaemonProcess) -> None:
    async with aio.insecure_channel(daemon.address) as channel:
        pool = Pool(channel)
        spec = sandbox_pb.SandboxSpec(memory_limit_bytes=192 * MIB)
        options = pool_pb.PoolOptions(preload=["decimal"])
        made = await pool.stub.InitializePool(pool_pb.InitializePoolRequest(size=1, spec=spec, options=options))
        pool.id = made.pool_id
        assert [await pool.python("import sys; print('decimal' in sys.modules)") for _ in range(2)] == ["True\n"] * 2
        await pool.delete()


async def test_a_member_whose_container_is_removed_is_replaced_under_its_id(pool: Pool) -> None:
    async with aiodocker.Docker(detect_engine_url()) as engine:
        before = await container_of(engine, pool.member)
        await engine.containers.container(before).delete(force=True)
        assert await pool.run("echo again") == "again\n"
        assert await container_of(engine, pool.member) != before


async def test_calls_share_the_members_in_turn(daemon: DaemonProcess) -> None:
    async with aio.insecure_channel(daemon.address) as channel:
        pool = Pool(channel)
        assert len(set(await pool.make(2))) == 2
        outputs = await asyncio.gather(*(pool.run(f"ls -A; echo {n} | tee f") for n in range(6)))
        assert outputs == [f"{n}\n" for n in range(6)]
        await pool.delete()


async def test_a_pull_of_an_image_that_is_there_answers_at_once(daemon: DaemonProcess) -> None:
    async with aio.insecure_channel(daemon.address) as channel:
        images = image_service_pb2_grpc.ImageServiceStub(channel)  # type: ignore[no-untyped-call]
        (step,) = [step async for step in images.PullImage(image_pb.PullImageRequest())]
        assert step.image_id.startswith("sha256:")
