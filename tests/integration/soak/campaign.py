"""Makes, uses and deletes sandboxes, many at a time, and looks at what stays: on the machine, and in the daemon.

``scripts/soak`` runs it by hand; the tests run a short one.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ms_enclave.errors import EnclaveError
from ms_enclave.sandbox.manager import LocalSandboxManager

from tests import leaks
from tests.integration.failures.ground import DaemonProcess, Ground, until
from tests.integration.soak.lives import Lives, Tally
from tests.integration.soak.measures import MIB, Sample, percentiles, sample, slope_mib_per_1000
from tests.scripts.loading import load

SANDBOXES = 1000
IN_FLIGHT = 8
WARM = 8
"""Sandboxes before the first look in a short soak: one of each life."""
WARM_LONG = 500
"""The same in a long one. Until then caches fill (the database's, gRPC's), and memory is taken in large pieces."""
SLOPE_MOST_MIB = 1.0
REAP_EVERY_S = "5"
GONE_S = 120.0
"""How long the last of it may take to go: abandoned sandboxes, executions that ended."""
SHOWN = 20
STEPS = ("create", "python", "shell", "files", "context", "stream", "delete")


@dataclass
class Soak:
    """What came of a soak."""

    in_flight: int
    tally: Tally = field(default_factory=Tally)
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    left: list[str] = field(default_factory=list)
    """What stayed of the sandboxes: in the daemon, on the disk, on the engine."""
    database_bytes: int = 0
    reaped: int = 0
    """Things that the reaper had to remove: each was left by a fault."""

    @property
    def slope_mib(self) -> float:
        """Growth of the daemon's memory for each 1,000 sandboxes, in MiB."""
        return slope_mib_per_1000(self.samples)

    @property
    def problems(self) -> list[str]:
        """What is not as it should be, but for the memory, which a short run cannot tell."""
        return [*self.tally.errors, *(f"left: {thing}" for thing in self.left)]


async def soak(
    sandboxes: int, in_flight: int, heard: Callable[[Soak], None] = lambda now: None, *, patient: bool = True
) -> Soak:
    """Lives so many sandboxes on a daemon of their own. A patient one also sees that the daemon forgets executions."""
    found, ground = Soak(in_flight), Ground()
    try:
        daemon = await ground.daemon("--limits-sandboxes-max", "1000", "--daemon-reap-every-s", REAP_EVERY_S)
        manager = LocalSandboxManager(address=daemon.address)
        await manager.start()
        lives = Lives(manager, daemon.address, found.tally)
        warm = WARM if sandboxes < SANDBOXES else WARM_LONG
        await _work(lives, range(warm), in_flight, found, lambda: None)
        assert not found.tally.errors, "\n".join(found.tally.errors)
        await _emptied(daemon, manager)
        descriptors, threads = leaks.descriptors(daemon.process.pid), leaks.threads(daemon.process.pid)
        began, done = time.monotonic(), itertools.count(1)

        def ended() -> None:
            found.samples.append(sample(daemon.process.pid, next(done), began))
            found.seconds = time.monotonic() - began
            heard(found)

        await _work(lives, range(warm, warm + sandboxes), in_flight, found, ended)
        tables = ("sandboxes", "executions") if patient else ("sandboxes",)
        found.left += await _what_stays(daemon, manager, ground, descriptors, threads, tables)
        found.database_bytes = sum(file.stat().st_size for file in (ground.folder / "e").glob("state.db*"))
        await manager.stop()
        daemon.send(signal.SIGTERM)
        await daemon.ended()
        daemon.check_log()
        found.reaped = daemon.text.count('"leftover removed"')
    finally:
        ground.clear()
    return found


async def _work(lives: Lives, numbers: Sequence[int], in_flight: int, found: Soak, ended: Callable[[], None]) -> None:
    gate = asyncio.Semaphore(in_flight)

    async def live(number: int) -> None:
        async with gate:
            try:
                await lives.live(number)
            except (EnclaveError, AssertionError) as error:
                found.tally.errors.append(f"sandbox {number}: {type(error).__name__}: {error}")
            ended()

    async with asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(live(number))


async def _emptied(daemon: DaemonProcess, manager: LocalSandboxManager) -> None:
    """Waits until the daemon has no sandbox."""
    deadline = time.monotonic() + GONE_S
    while infos := await manager.list_sandboxes():
        assert time.monotonic() < deadline, f"still there after {GONE_S:g} s: {[info.id for info in infos]}"
        await asyncio.sleep(0.2)
    assert daemon.process.poll() is None


async def _what_stays(
    daemon: DaemonProcess,
    manager: LocalSandboxManager,
    ground: Ground,
    descriptors: list[str],
    threads: int,
    tables: Sequence[str],
) -> list[str]:
    """Names what is still there of sandboxes once all are deleted."""
    await _emptied(daemon, manager)
    pid, state_dir = daemon.process.pid, ground.folder / "e"
    left: list[str] = []

    def look() -> bool:
        rows = leaks.rows(state_dir / "state.db")
        now = leaks.descriptors(pid)
        left[:] = [
            *(f"container {name}" for name in ground.containers()),
            *(f"directory {path}" for path in (state_dir / "s").iterdir()),
            *(f"{rows[table]} rows in {table}" for table in tables if rows[table]),
            *(f"child process {child}" for child in leaks.children(pid).items()),
            *([f"{len(now)} descriptors, {len(descriptors)} before: {now}"] if len(now) > len(descriptors) else []),
            *([f"{leaks.threads(pid)} threads, {threads} before"] if leaks.threads(pid) > max(threads, 16) else []),
        ]
        return not left

    try:
        await until(look, "nothing left", GONE_S)
    except AssertionError:
        return left
    return []


def report(found: Soak) -> str:
    """The numbers, and what was wrong."""
    tally, lived = found.tally, len(found.samples)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.lives.items()))
    rate = lived / found.seconds if found.seconds else 0.0
    lines = [
        f"{lived} sandboxes, {found.in_flight} in flight, {found.seconds:.0f} s: {rate:.2f} sandboxes/s",
        f"lives: {kinds}",
        "",
        "| step | times | median ms | p95 ms | p99 ms | most ms |",
        "|---|---|---|---|---|---|",
    ]
    for step in [*STEPS, *sorted(tally.seconds.keys() - {*STEPS})]:
        if seconds := tally.seconds[step]:
            numbers = " | ".join(f"{value:.0f}" for value in percentiles(seconds))
            lines.append(f"| {step} | {len(seconds)} | {numbers} |")
    lines += ["", "| sandboxes | s | memory MiB | descriptors | threads | dockerd MiB |", "|---|---|---|---|---|---|"]
    every = max(1, lived // 10)
    for one in found.samples[every - 1 :: every]:
        memory, engine = one.memory_bytes / MIB, one.engine_memory_bytes / MIB
        numbers = f"{memory:.1f} | {one.descriptors} | {one.threads} | {engine:.1f}"
        lines.append(f"| {one.sandboxes} | {one.seconds:.0f} | {numbers} |")
    lines += [
        "",
        f"memory slope: {found.slope_mib:+.2f} MiB per 1,000 sandboxes (at most {SLOPE_MOST_MIB:g})",
        f"database: {found.database_bytes / 1024:.0f} KiB",
        f"removed by the reaper: {found.reaped}",
        f"errors: {len(tally.errors)}",
        f"left behind: {len(found.left)}",
        *found.problems[:SHOWN],
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Does what the command line asks for, and prints the report. The exit code is 0 if nothing was left or wrong."""
    parser = argparse.ArgumentParser(prog="soak", description="Makes, uses and deletes sandboxes; looks what stays.")
    parser.add_argument("--sandboxes", type=int, default=SANDBOXES, help=f"how many (default: {SANDBOXES})")
    parser.add_argument("--in-flight", type=int, default=IN_FLIGHT, help=f"at once (default: {IN_FLIGHT})")
    parser.add_argument("--report", type=Path, default=None, help="a file for the report, in Markdown")
    parser.add_argument("--json", type=Path, default=None, help="a file for the samples")
    options = parser.parse_args(arguments)
    found, on_machine = Soak(options.in_flight), ""
    with load("_console").Progress("soaking", total=options.sandboxes) as progress:

        def heard(now: Soak) -> None:
            progress.update(len(now.samples), f"{len(now.tally.errors)} errors")

        try:
            with leaks.nothing_left():
                found = asyncio.run(soak(options.sandboxes, options.in_flight, heard))
        except leaks.LeftBehind as error:
            on_machine = str(error)
    text = f"{report(found)}\non the machine: {on_machine or 'nothing left'}"
    print(text)
    if options.report is not None:
        options.report.write_text(f"{text}\n")
    if options.json is not None:
        options.json.write_text(json.dumps([vars(one) for one in found.samples]) + "\n")
    too_much = found.slope_mib > SLOPE_MOST_MIB and options.sandboxes >= SANDBOXES
    return int(bool(found.problems or on_machine or too_much or found.reaped))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
