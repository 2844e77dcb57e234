"""Kills a daemon at random moments while clients stream and do all that one can do, and counts what that cost.

``scripts/chaos`` runs it by hand; the tests run a short one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from tests.integration.chaos import lives
from tests.integration.chaos.client import Follower, Tally
from tests.integration.chaos.lives import Life
from tests.integration.chaos.programs import program
from tests.integration.failures.ground import DaemonProcess, Ground, Stubs, until
from tests.scripts.loading import load
from tests.service.crash.history import History

KILLS = 100
CLIENTS = 4
LIFE_S = (0.0, 3.0)
"""How long a daemon lives after it began to serve, at least and at most."""
MEMORY_BYTES = 96 * 1024 * 1024
PROGRESS_S = 15.0
PATIENCE_S = 120.0
SHOWN = 20


async def campaign(kills: int, clients: int, seed: int, heard: object = None) -> Tally:
    """Runs clients on a daemon of their own and kills it so often. ``heard`` is told after each kill."""
    ground, tally, chance, history = Ground(), Tally(), random.Random(seed), History()
    over = asyncio.Event()
    try:
        daemon = await ground.daemon()
        names = [f"chaos-{number}" for number in range(clients)]
        await _make(daemon, names)
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(_work(daemon.address, name, random.Random(chance.randrange(2**32)), tally, over))
            for number in range(clients):
                own = random.Random(chance.randrange(2**32))
                group.create_task(Life(daemon.address, history, f"life-{number}", own).live(over))
            for _ in range(kills):
                await asyncio.sleep(chance.uniform(*LIFE_S))
                if chance.random() < 0.5:  # also where making a sandbox takes longer than that
                    await _something_done(history)
                daemon.send(signal.SIGKILL)
                await daemon.ended()
                daemon.check_log()
                tally.kills += 1
                if callable(heard):
                    heard(tally)
                daemon = await ground.daemon()
            over.set()
        await _count_runs(daemon, names, tally)
        tally.broken_promises = await lives.faults(daemon.address, history, ground)
        tally.operations = history.summary()
        await lives.clear(daemon.address)
        daemon.send(signal.SIGTERM)
        await daemon.ended()
        daemon.check_log()
        tally.left_containers = len(ground.containers())
        tally.left_directories = len(list((ground.folder / "e" / "s").iterdir()))
    finally:
        ground.clear()
    return tally


async def _something_done(history: History) -> None:
    """Waits until an operation was acknowledged that is not yet, for a while."""
    done = len(history.acknowledged)
    with suppress(AssertionError):
        await until(lambda: len(history.acknowledged) > done, "an answer", patience_s=PROGRESS_S)


async def _make(daemon: DaemonProcess, names: Sequence[str]) -> None:
    gate = asyncio.Semaphore(4)
    async with aio.insecure_channel(daemon.address) as channel, asyncio.TaskGroup() as group:
        stubs = Stubs(channel)
        spec = sandbox_pb.SandboxSpec(memory_limit_bytes=MEMORY_BYTES)

        async def make(name: str) -> None:
            async with gate:
                request = sandbox_pb.CreateSandboxRequest(sandbox_id=name, spec=spec)
                await stubs.sandboxes.CreateSandbox(request, timeout=PATIENCE_S)

        for name in names:
            group.create_task(make(name))


async def _work(address: str, sandbox_id: str, chance: random.Random, tally: Tally, over: asyncio.Event) -> None:
    """Runs programs in one sandbox, two at a time, until it is over."""

    async def run(line: str) -> None:
        number = 0
        while not over.is_set():
            number += 1
            wanted = program(f"{sandbox_id}-{line}-{number}", chance)
            await Follower(address, sandbox_id, wanted, tally).follow()

    await asyncio.gather(run("a"), run("b"))


async def _count_runs(daemon: DaemonProcess, names: Sequence[str], tally: Tally) -> None:
    """Looks in each sandbox at what every program wrote when it began."""
    async with aio.insecure_channel(daemon.address) as channel:
        stubs = Stubs(channel)
        for name in names:
            parameters = json.dumps({"command": "cat runs"})
            spec = pb.ExecutionSpec(sandbox_id=name, tool="shell_executor", parameters_json=parameters)
            answer = await stubs.executions.Run(pb.RunRequest(spec=spec), timeout=PATIENCE_S)
            runs = answer.stdout.decode().split()
            tally.ran_twice += len(runs) - len(set(runs))


async def adoption(count: int) -> float:
    """Kills a daemon with so many sandboxes; returns the seconds until the next has taken all up, once it serves."""
    ground = Ground()
    try:
        daemon = await ground.daemon("--limits-sandboxes-max", str(count))
        await _make(daemon, [f"adopted-{number}" for number in range(count)])
        daemon.send(signal.SIGKILL)
        await daemon.ended()
        daemon = await ground.daemon("--limits-sandboxes-max", str(count))
        await until(lambda: daemon.text.count('"sandbox adopted"') == count, f"the adoption of {count} sandboxes")
        said = [json.loads(line) for line in daemon.text.splitlines()]
        moments = {line["event"]: datetime.fromisoformat(line["time"]) for line in said}  # the last of each
        daemon.send(signal.SIGTERM)
        await daemon.ended()
        return (moments["sandbox adopted"] - moments["ready"]).total_seconds()
    finally:
        ground.clear()


def report(tally: Tally, seed: int, seconds: float) -> str:
    """The numbers as a table, and what was wrong."""
    ran = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.executions.items()))
    done = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.operations.items()))
    rows = {
        "kills of the daemon": tally.kills,
        "executions followed to their end": f"{tally.executions.total()} ({ran})",
        "attachments after a kill": tally.attachments,
        "bytes of output": tally.output_bytes,
        "bytes lost": tally.lost_bytes,
        "bytes doubled": tally.doubled_bytes,
        "outputs that differ": tally.different,
        "wrong verdicts": tally.wrong_verdicts,
        "programs that ran twice": tally.ran_twice,
        "other operations": f"{tally.operations.total()} ({done})",
        "promises broken": len(tally.broken_promises),
        "containers left": tally.left_containers,
        "directories left": tally.left_directories,
    }
    table = ["| what | how many |", "|---|---|", *(f"| {what} | {count} |" for what, count in rows.items())]
    return "\n".join(
        [*table, "", *tally.described[:SHOWN], *tally.broken_promises[:SHOWN], f"seed {seed}, {seconds:.0f} s"]
    )


def main(arguments: Sequence[str]) -> int:
    """Does what the command line asks for, and prints the report. The exit code is 0 if nothing was lost."""
    parser = argparse.ArgumentParser(prog="chaos", description="Kills a daemon while clients stream.")
    parser.add_argument("--kills", type=int, default=KILLS, help=f"how often (default: {KILLS})")
    parser.add_argument(
        "--clients",
        type=int,
        default=CLIENTS,
        help=f"clients that stream, and as many that do all else (default: {CLIENTS})",
    )
    parser.add_argument("--seed", type=int, default=None, help="repeats an earlier choice of programs and moments")
    parser.add_argument("--adopt", type=int, default=0, help="measures how long taking up so many sandboxes takes")
    parser.add_argument("--report", type=Path, default=None, help="a file for the report, in Markdown")
    parser.add_argument("--json", type=Path, default=None, help="a file for the numbers")
    options = parser.parse_args(arguments)
    if options.adopt:
        print(f"{options.adopt} sandboxes were taken up within {asyncio.run(adoption(options.adopt)):.2f} s")
        return 0
    seed = int(time.time()) if options.seed is None else options.seed
    started = time.monotonic()
    with load("_console").Progress("killing", total=options.kills) as progress:
        tally = asyncio.run(
            campaign(
                options.kills,
                options.clients,
                seed,
                lambda now: progress.update(now.kills, f"{now.executions.total()} executions, {now.faults} faults"),
            )
        )
    text = report(tally, seed, time.monotonic() - started)
    print(text)
    if options.report is not None:
        options.report.write_text(f"{text}\n")
    if options.json is not None:
        numbers = {**vars(tally), "seed": seed, "faults": tally.faults}
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")
    return int(tally.faults > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
