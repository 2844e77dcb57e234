"""Times calls in pools against warm calls in sandboxes of the callers' own, interleaved in one run.

    python benchmarks/pool.py                  # 5 rounds of 2 s for each path, about four minutes
    python benchmarks/pool.py --rounds 1 --seconds 0.5    # a quick look

Every path runs for a while once a round, in random order: so many callers call `print(1)` one call after the other over
gRPC, through one connection. The baseline with the same number of callers is the warm path with sandboxes of their own:
in their default contexts, and isolated, in a fresh interpreter each time, which is what a call in a pool gets beside
its reset. There are as many sandboxes as the pool has members. Every answer is checked. Ratios are ratios of medians of
this run; absolute numbers are the weather of this machine.

Needs a Docker engine and the default image (`./scripts/quickstart` makes both).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import execution_service_pb2_grpc as execution_grpc
from ms_enclave.v1 import pool_service_pb2 as pool_pb
from ms_enclave.v1 import pool_service_pb2_grpc as pool_grpc
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import sandbox_service_pb2_grpc as sandbox_grpc

SIZES = (4, 8)
CALLERS = (1, 8, 32)
MIB = 1024 * 1024
SPEC = sandbox_pb.SandboxSpec(memory_limit_bytes=192 * MIB)
Call = Callable[[int], Awaitable[None]]


@dataclass
class Measured:
    """What was measured of one path."""

    per_s: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)


def python(isolated: bool, sandbox_id: str = "") -> execution_pb.ExecutionSpec:
    parameters = json.dumps({"code": "print(1)", "isolated": isolated})
    return execution_pb.ExecutionSpec(sandbox_id=sandbox_id, tool="python_executor", parameters_json=parameters)


def check(stdout: bytes) -> None:
    if stdout != b"1\n":
        raise SystemExit(f"a wrong answer: {stdout!r}")


async def measure(call: Call, callers: int, seconds: float, measured: Measured) -> None:
    """Lets callers call one after the other for a while."""
    end = time.perf_counter() + seconds
    began, count = time.perf_counter(), 0

    async def caller(number: int) -> None:
        nonlocal count
        while time.perf_counter() < end:
            started = time.perf_counter()
            await call(number)
            measured.latencies_s.append(time.perf_counter() - started)
            count += 1

    await asyncio.gather(*(caller(number) for number in range(callers)))
    measured.per_s.append(count / (time.perf_counter() - began))


@contextmanager
def daemon() -> Iterator[str]:
    """A daemon of our own."""
    with tempfile.TemporaryDirectory(prefix="pool", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        socket = Path(folder) / "e.sock"
        command = [sys.executable, "-m", "enclaved", "run", "--listen-unix", str(socket), "--metrics", ""]
        command += ["--state-dir", f"{folder}/state", "--log-level", "error", "--limits-sandboxes-max", "64"]
        process = subprocess.Popen(command)
        try:
            deadline = time.monotonic() + 30
            while not socket.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            yield f"unix:{socket}"
        finally:
            process.terminate()
            process.wait(60)


async def paths_of(channel: aio.Channel, size: int) -> tuple[dict[str, Call], Callable[[], Awaitable[list[Any]]]]:
    """The ways to call that are compared, and what the leases of the pool say in the end."""
    sandboxes: Any = sandbox_grpc.SandboxServiceStub(channel)
    executions: Any = execution_grpc.ExecutionServiceStub(channel)
    pools: Any = pool_grpc.PoolServiceStub(channel)
    boxes = []
    for _ in range(size):
        made = await sandboxes.CreateSandbox(sandbox_pb.CreateSandboxRequest(spec=SPEC))
        boxes.append(made.sandbox.id)
    for warm, contexts in (("plain", ()), ("warm", ("default",))):
        options = pool_pb.PoolOptions(contexts=contexts)
        request = pool_pb.InitializePoolRequest(pool_id=f"{warm}-{size}", size=size, spec=SPEC, options=options)
        await pools.InitializePool(request)

    def own(isolated: bool) -> Call:
        async def call(number: int) -> None:
            request = execution_pb.RunRequest(spec=python(isolated, boxes[number % size]))
            check((await executions.Run(request)).stdout)

        return call

    def pooled(pool_id: str) -> Call:
        request = pool_pb.RunInPoolRequest(pool_id=pool_id, spec=python(False))

        async def call(number: int) -> None:
            check((await pools.RunInPool(request)).run.stdout)

        return call

    async def leases() -> list[Any]:
        answer = await pools.ListLeases(pool_pb.ListLeasesRequest(pool_id=f"plain-{size}", page_size=1000))
        return list(answer.leases)

    paths = {
        "own sandbox, context": own(False),
        "own sandbox, isolated": own(True),
        "pool": pooled(f"plain-{size}"),
        "pool, open context": pooled(f"warm-{size}"),
    }
    return paths, leases


async def run(address: str, rounds: int, seconds: float) -> None:
    async with aio.insecure_channel(address) as channel:
        for size in SIZES:
            paths, leases = await paths_of(channel, size)
            found = {(name, callers): Measured() for name in paths for callers in CALLERS}
            for call in paths.values():
                await asyncio.gather(*(call(number) for number in range(size)))
            for _ in range(rounds):
                for name, callers in random.sample(list(found), len(found)):
                    await measure(paths[name], callers, seconds, found[name, callers])
            show(size, found)
            resets = [lease.reset_s * 1000 for lease in await leases()]
            clean = sum(lease.outcome == pool_pb.Lease.OUTCOME_CLEAN for lease in await leases())
            print(f"\nreset of a member: median {statistics.median(resets):.1f} ms; {clean} of {len(resets)} clean\n")


def show(size: int, found: dict[tuple[str, int], Measured]) -> None:
    print(f"{size} members, {size} sandboxes of their own; calls/s (ratio to own sandbox, isolated) and latency\n")
    print("| path | callers | calls/s | ratio | median ms | p95 ms |\n|---|---|---|---|---|---|")
    for (name, callers), measured in found.items():
        rate = statistics.median(measured.per_s)
        base = statistics.median(found["own sandbox, isolated", callers].per_s)
        times = sorted(measured.latencies_s)
        p95 = times[int(len(times) * 0.95)] * 1000
        median = statistics.median(times) * 1000
        print(f"| {name} | {callers} | {rate:.0f} | {rate / base:.2f} | {median:.2f} | {p95:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Times calls in pools.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    with daemon() as address:
        asyncio.run(run(address, arguments.rounds, arguments.seconds))


if __name__ == "__main__":
    main()
