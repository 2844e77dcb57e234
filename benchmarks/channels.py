"""Times the same calls in a sandbox reached over the socket and in one reached by an attach, interleaved in one run.

    python benchmarks/channels.py                 # 20 rounds, about a minute
    python benchmarks/channels.py --rounds 2      # a quick look

Every answer is checked. Ratios are ratios of medians of this run; absolute times are the weather of this machine.

Needs a Docker engine and the default image (`./scripts/quickstart` makes both).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave.sandbox.boxes import DockerSandbox
from ms_enclave.sandbox.model import DockerSandboxConfig, Output

CHANNELS = ("socket", "attach")
STREAMED_BYTES = 8 * 1024 * 1024
CONFIG = DockerSandboxConfig(memory_limit="256m")
Call = Callable[[DockerSandbox], Awaitable[None]]


@contextlib.asynccontextmanager
async def sandbox_over(channel: str, folder: Path) -> AsyncIterator[DockerSandbox]:
    """A sandbox of a daemon of its own."""
    socket = folder / f"{channel}.sock"
    flags = (
        "--listen-unix",
        str(socket),
        "--state-dir",
        f"{folder}/{channel}",
        "--metrics",
        "",
        "--log-level",
        "error",
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "enclaved", "run", *flags, "--engine-channel", channel)
    )
    try:
        async with grpc.aio.insecure_channel(f"unix:{socket}") as probe, asyncio.timeout(30):
            await probe.channel_ready()
        sandbox = DockerSandbox(CONFIG)
        sandbox.use(GrpcTransport(f"unix:{socket}"), {})
        async with sandbox:
            yield sandbox
    finally:
        process.terminate()
        async with asyncio.timeout(60):
            await process.wait()


async def persistent(sandbox: DockerSandbox) -> None:
    """One `print(1)` in the persistent context."""
    check((await sandbox.execute_tool("python_executor", {"code": "print(1)"})).output == "1\n")


async def fresh(sandbox: DockerSandbox) -> None:
    """One `print(1)` in a fresh interpreter."""
    check((await sandbox.execute_tool("python_executor", {"code": "print(1)", "isolated": True})).output == "1\n")


async def stream(sandbox: DockerSandbox) -> None:
    """Output at full speed."""
    size = 0
    async for event in sandbox.stream("bash", command=f"head -c {STREAMED_BYTES} /dev/zero"):
        if isinstance(event, Output):
            size += len(event.data)
    check(size == STREAMED_BYTES)


def check(succeeded: bool) -> None:
    """A failed run is not a fast run."""
    if not succeeded:
        raise SystemExit("benchmark: a call answered something else")


CALLS: dict[str, tuple[Call, int]] = {
    "persistent context": (persistent, 5),
    "fresh interpreter": (fresh, 5),
    f"stream of {STREAMED_BYTES >> 20} MiB": (stream, 1),
}
"""Each call, and how often it is made in a round."""


async def main(rounds: int) -> None:
    """Makes a sandbox over each channel, measures, and prints one table."""
    times: dict[tuple[str, str], list[float]] = {(call, channel): [] for call in CALLS for channel in CHANNELS}
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench", dir="/tmp")))
        folder.chmod(0o711)
        made = {channel: await stack.enter_async_context(sandbox_over(channel, folder)) for channel in CHANNELS}
        for number in range(-1, rounds):
            for name, (call, repeats) in CALLS.items():
                for channel in CHANNELS if number % 2 else reversed(CHANNELS):
                    for _ in range(repeats):
                        start = time.perf_counter()
                        await call(made[channel])
                        if number >= 0:
                            times[name, channel].append((time.perf_counter() - start) * 1000)
    print(f"load {os.getloadavg()[0]:.2f}, {os.cpu_count()} CPUs")
    print("| call | n | socket: median ms | attach: median ms | attach / socket |")
    print("|---|---|---|---|---|")
    for name in CALLS:
        socket, attach = (statistics.median(times[name, channel]) for channel in CHANNELS)
        count = len(times[name, "socket"])
        print(f"| {name} | {count} | {socket:.2f} | {attach:.2f} | {attach / socket:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="how often (default: 20)")
    asyncio.run(main(parser.parse_args().rounds))
