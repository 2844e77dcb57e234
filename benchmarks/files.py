"""Times files between this machine and a sandbox against `docker cp` of the same bytes, interleaved in one run.

    python benchmarks/files.py                          # 256 MiB, 5 rounds, a minute or two
    python benchmarks/files.py --mib 16 --rounds 1      # a quick look

Ours go to and from the sandbox's working directory, which is in memory; `docker cp` cannot reach that, so its files go
to and from the file system of a container of the same image. What comes back is compared with what went.
Then 1,000 small files are synchronised, one of them is changed, and the bytes are counted that
go through the daemon's socket for it. Ratios are ratios of medians of this run. CPU time is that of the client alone
(this process, or the command), without the daemon's or the engine's.

Needs a Docker engine and the default image (`./scripts/quickstart` makes both).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave.sandbox.boxes import DockerSandbox, SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType

MIB = 1024 * 1024
FILES = 1000
FILE_BYTES = 500
PATHS = ("docker cp", "SDK", "ms-enclave cp")
Copy = Callable[[], Awaitable[None]]


async def run(*command: str, **variables: str) -> None:
    """Runs a command that must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **variables}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"benchmark: {command[:3]} failed: {errors.decode().strip()}")


def cpu_s() -> float:
    """CPU time of this process and of the commands that it has run to their end."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


async def measure(copies: dict[str, Copy], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Runs every copy once a round, in random order; returns seconds, and of CPU time. The first round is left out."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in copies}
    for number in range(-1, rounds):
        for name in random.sample(list(copies), len(copies)):
            start, cpu = time.perf_counter(), cpu_s()
            await copies[name]()
            if number >= 0:
                times[name].append((time.perf_counter() - start, cpu_s() - cpu))
    return times


def report(title: str, times: dict[str, list[tuple[float, float]]], mib: int) -> None:
    """Prints one table."""
    baseline = statistics.median(seconds for seconds, _ in times[PATHS[0]])
    print(f"\n{title}, {mib} MiB")
    print("| path | n | median s | MB/s | speed relative to docker cp | client's CPU, ms/MiB |")
    print("|---|---|---|---|---|---|")
    for name, found in times.items():
        median, cpu = (statistics.median(each) for each in zip(*found, strict=True))
        speed, ratio = mib * 1.048576 / median, baseline / median
        print(f"| {name} | {len(found)} | {median:.2f} | {speed:.0f} | {ratio:.2f} | {cpu * 1000 / mib:.1f} |")


def digest(path: Path) -> str:
    """What is compared."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def one_file(sandbox: DockerSandbox, container: str, folder: Path, mib: int, rounds: int) -> None:
    """Both directions of one large file."""
    source = folder / "source"
    with source.open("wb") as file:
        for _ in range(mib):
            file.write(random.randbytes(MIB))
    transport = await sandbox.transport()
    assert isinstance(transport, GrpcTransport)
    address = {"MS_ENCLAVE_ADDRESS": transport.address}
    backs = {name: folder / f"back {name}" for name in PATHS}
    command = str(Path(sys.executable).with_name("ms-enclave"))

    async def sdk_up() -> None:
        await sandbox.files.upload(source, "file")

    async def sdk_down() -> None:
        await sandbox.files.download("file", backs["SDK"])

    up: dict[str, Copy] = {
        "docker cp": lambda: run("docker", "cp", str(source), f"{container}:/file"),
        "SDK": sdk_up,
        "ms-enclave cp": lambda: run(command, "cp", str(source), f"{sandbox.id}:file", **address),
    }
    down: dict[str, Copy] = {
        "docker cp": lambda: run("docker", "cp", f"{container}:/file", str(backs["docker cp"])),
        "SDK": sdk_down,
        "ms-enclave cp": lambda: run(command, "cp", f"{sandbox.id}:file", str(backs["ms-enclave cp"]), **address),
    }
    report("Into the sandbox", await measure(up, rounds), mib)
    report("Out of the sandbox", await measure(down, rounds), mib)
    wanted = digest(source)
    if any(digest(back) != wanted for back in backs.values()):
        raise SystemExit("benchmark: what came back is not what went")


@contextlib.asynccontextmanager
async def counted(address: str, folder: Path) -> AsyncIterator[tuple[str, dict[str, int]]]:
    """A socket in front of the daemon's that counts what goes through."""
    counts = {"to the sandbox": 0, "from the sandbox": 0}

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):  # the end of all
            while data := await reader.read(65536):
                counts[name] += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs = await asyncio.open_unix_connection(address.removeprefix("unix:"))
        await asyncio.gather(pump(reader, theirs[1], "to the sandbox"), pump(theirs[0], writer, "from the sandbox"))

    path = folder / "counted.sock"
    async with await asyncio.start_unix_server(serve, path):
        yield f"unix:{path}", counts


async def many_files(sandbox: DockerSandbox, folder: Path) -> None:
    """1,000 small files, of which one changes."""
    source = folder / "many"
    source.mkdir()
    for number in range(FILES):
        (source / f"{number:04}.txt").write_bytes(random.randbytes(FILE_BYTES))
    transport = await sandbox.transport()
    assert isinstance(transport, GrpcTransport)
    async with counted(transport.address, folder) as (address, counts):
        through = await DockerSandbox.connect(sandbox.id, address=address)
        print(f"\n{FILES} files of {FILE_BYTES} bytes")
        print("| what | files moved | seconds | bytes to the sandbox | bytes from the sandbox |")
        print("|---|---|---|---|---|")

        async def shown(what: str, moving: Awaitable[int]) -> None:
            before, start = dict(counts), time.perf_counter()
            moved = await moving
            seconds = time.perf_counter() - start
            up, down = (counts[name] - before[name] for name in counts)
            print(f"| {what} | {moved} | {seconds:.2f} | {up:,} | {down:,} |")

        await shown("put_dir of all", through.files.put_dir(source, "many"))
        (source / "0500.txt").write_bytes(random.randbytes(FILE_BYTES + 1))
        await shown("put_dir, one has changed", through.files.put_dir(source, "many"))
        await shown("put_dir, nothing has", through.files.put_dir(source, "many"))
        await shown("get_dir of all", through.files.get_dir("many", folder / "back"))
        await shown("get_dir, nothing has changed", through.files.get_dir("many", folder / "back"))


async def main(mib: int, rounds: int, image: str) -> None:
    """Measures both."""
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}, load {os.getloadavg()[0]:.2f}")
    limits = {"working_dir_size": f"{2 * mib + 64}m"}  # what is replaced stays until the new one is whole
    config = DockerSandboxConfig(image=image, memory_limit=f"{3 * mib + 512}m", resource_limits=limits)
    container = f"msf-{os.getpid()}"
    await run("docker", "run", "--rm", "-d", "--network", "none", "--name", container, image, "sleep", "3600")
    try:
        with tempfile.TemporaryDirectory(prefix="msf-") as folder:
            async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as sandbox:
                assert isinstance(sandbox, DockerSandbox)
                await one_file(sandbox, container, Path(folder), mib, rounds)
                await many_files(sandbox, Path(folder))
    finally:
        await run("docker", "rm", "-f", container)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Times files against docker cp.")
    parser.add_argument("--mib", type=int, default=256, help="size of the large file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image", default="ms-enclave/python:3.11")
    given = parser.parse_args()
    asyncio.run(main(given.mib, given.rounds, given.image))
