"""Times one `print(1)` in an existing sandbox against `docker exec` of the same image, interleaved in one run.

    python benchmarks/print_one.py                 # 40 rounds of bursts of five, about two minutes
    python benchmarks/print_one.py --rounds 4      # a quick look

Every path runs a burst of calls once a round, the paths in random order, in two rhythms: one call right after the
other, and one call after 6 ms of idling (agents live in the second). Every answer is checked. Ratios are ratios of
medians of this run; absolute times are the weather of this machine. The empty call is gRPC's standard health check
over the same socket.

Needs a Docker engine and the default image (`./scripts/quickstart` makes both).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiodocker
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ms_enclave.sandbox.boxes import SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType

PROGRAM = "print(1)"
IDLE_S = 0.006
BURST = 5
BASELINE = "docker exec CLI"
PERSISTENT = "SDK, persistent context"
Path_ = Callable[[], Awaitable[None]]


def docker(*arguments: str) -> str:
    """Runs the Docker client and returns what it prints."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout.strip()


async def exec_by_client(container: str) -> None:
    """`docker exec` as a person types it."""
    process = await asyncio.create_subprocess_exec(
        "docker", "exec", container, "python3", "-c", PROGRAM, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    check(output.decode(), process.returncode == 0)


async def exec_by_api(container: aiodocker.containers.DockerContainer) -> None:
    """`docker exec` through aiodocker: create, start, inspect."""
    execution = await container.exec(["python3", "-c", PROGRAM])
    output = b""
    async with execution.start(detach=False) as stream:
        while (message := await stream.read_out()) is not None:
            output += message.data
    check(output.decode(), (await execution.inspect())["ExitCode"] == 0)


def check(output: str, succeeded: bool = True) -> None:
    """A failed run is not a fast run."""
    if output != "1\n" or not succeeded:
        raise SystemExit(f"benchmark: a path answered {output!r}")


async def measure(paths: dict[str, Path_], rounds: int, burst: int, idle_s: float) -> dict[str, list[float]]:
    """Runs a burst of every path once a round, the paths in random order; returns milliseconds for each call.

    The first call of a burst is not counted: the path before it may still be cleaning up after itself. Neither are two
    rounds to warm up, or only one where not more are measured.
    """
    times: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(-min(2, rounds), rounds):
        for name in random.sample(list(paths), len(paths)):
            for call in range(burst + 1):
                await asyncio.sleep(idle_s)
                start = time.perf_counter()
                await paths[name]()
                if number >= 0 and call > 0:
                    times[name].append((time.perf_counter() - start) * 1000)
        if sys.stderr.isatty():
            print(f"\r{number + 1}/{rounds} rounds", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r" + " " * 30 + "\r", end="", file=sys.stderr)
    return times


def report(title: str, times: dict[str, list[float]]) -> None:
    """Prints one table."""
    baseline, persistent = statistics.median(times[BASELINE]), statistics.median(times[PERSISTENT])
    print(f"\n{title}")
    print(f"| path | n | min ms | median ms | p95 ms | {BASELINE} / path | path / persistent |")
    print("|---|---|---|---|---|---|---|")
    for name, found in sorted(times.items(), key=lambda item: statistics.median(item[1])):
        ordered = sorted(found)
        median = statistics.median(ordered)
        p95 = ordered[int(len(ordered) * 0.95)]
        tail = f"{p95:.2f}" if len(ordered) >= 100 else f"{ordered[-1]:.2f} (max)"
        ratios = f"{baseline / median:.1f} | {median / persistent:.2f}"
        print(f"| {name} | {len(ordered)} | {ordered[0]:.2f} | {median:.2f} | {tail} | {ratios} |")


def machine(image: str) -> None:
    """Prints what a reader needs to judge the numbers."""
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("ms-enclave", "grpcio", "aiodocker"))
    cgroup = 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}, cgroup v{cgroup}")
    print(f"load at start {os.getloadavg()[0]:.2f}, Python {platform.python_version()}, {packages}")
    print(f"Docker Engine {docker('version', '--format', '{{.Server.Version}}')}, image {image}")


@contextlib.contextmanager
def daemon() -> Iterator[str]:
    """Runs a daemon of our own, so that gRPC's empty call can be measured on the same socket as the SDK."""
    with tempfile.TemporaryDirectory(prefix="enclaved-bench-") as directory:
        socket = Path(directory) / "enclaved.sock"
        flags = [
            "--listen-unix",
            str(socket),
            "--state-dir",
            f"{directory}/state",
            "--metrics",
            "",
            "--log-level",
            "error",
        ]
        process = subprocess.Popen([sys.executable, "-m", "enclaved", "run", *flags])
        try:
            with grpc.insecure_channel(f"unix:{socket}") as channel:
                grpc.channel_ready_future(channel).result(timeout=30)
            yield f"unix:{socket}"
        finally:
            process.terminate()
            process.wait(timeout=60)


async def main(rounds: int, address: str) -> None:
    """Prepares one sandbox and one plain container, measures, and removes both."""
    config = DockerSandboxConfig(tools_config=["python_executor", "shell_executor"], memory_limit="512m")
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as sandbox, aiodocker.Docker() as engine:
        image = sandbox.get_info().metadata["image_id"]
        machine(image)
        container = docker("run", "-d", "--rm", "--network", "none", "--log-driver", "none", image, "sleep", "3600")
        try:
            plain = await engine.containers.get(container)
            async with grpc.aio.insecure_channel(address) as channel:
                health = health_pb2_grpc.HealthStub(channel)

                async def empty() -> None:
                    await health.Check(health_pb2.HealthCheckRequest())

                async def tool(name: str, **parameters: object) -> None:
                    result = await sandbox.execute_tool(name, parameters)
                    check(result.output or "", result.success)

                paths: dict[str, Path_] = {
                    "empty gRPC call": empty,
                    PERSISTENT: lambda: tool("python_executor", code=PROGRAM),
                    "SDK, fresh interpreter": lambda: tool("python_executor", code=PROGRAM, isolated=True),
                    "SDK, command `echo 1`": lambda: tool("shell_executor", command=["echo", "1"]),
                    "aiodocker exec": lambda: exec_by_api(plain),
                    BASELINE: lambda: exec_by_client(container),
                }
                for title, idle_s in (("one call after the other", 0.0), ("one call after 6 ms of idling", IDLE_S)):
                    report(title, await measure(paths, rounds, BURST, idle_s))
        finally:
            docker("rm", "-f", container)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="rounds for each rhythm (default: 40)")
    arguments = parser.parse_args()
    with daemon() as address:
        os.environ["MS_ENCLAVE_ADDRESS"] = address
        asyncio.run(main(arguments.rounds, address))
