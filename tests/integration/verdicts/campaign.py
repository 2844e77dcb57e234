"""Runs programs whose end is known beforehand, many times, and compares what is said of how they ended.

``scripts/verdicts`` runs it by hand; the tests run a short one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from tests.integration.failures.ground import DaemonProcess, Ground, Stubs
from tests.integration.verdicts.cases import KINDS, Case

MIB = 1024 * 1024
MEMORY_BYTES = 96 * MIB
PATIENCE_S = 120.0
PARALLEL = 4
RUNS = 500
SHOWN = 20
"""So many mismatches are described."""


@dataclass
class Tally:
    """What came of the runs."""

    runs: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    described: list[str] = field(default_factory=list)

    def report(self) -> str:
        """The numbers of each kind, and what was wrong."""
        width = max(len(kind) for kind in self.runs)
        lines = [f"{kind:<{width}}  {count:>6} runs  {self.wrong[kind]:>4} wrong" for kind, count in self.runs.items()]
        total = f"{self.runs.total()} runs, {self.wrong.total()} misclassified"
        return "\n".join([*lines, *self.described[:SHOWN], total])


def mismatch(case: Case, finished: pb.Finished) -> str:
    """What is wrong with what was said; nothing if it is as expected."""
    expected = case.expected
    sender = pb.SignalSender.Name(finished.signal_sender).removeprefix("SIGNAL_SENDER_")
    said = {
        "verdict": pb.Verdict.Name(finished.verdict).removeprefix("VERDICT_"),
        "exit_code": finished.exit_code if finished.HasField("exit_code") else None,
        "signal": finished.signal if finished.HasField("signal") else None,
        "exception": finished.exception.type,
        "sender": sender,
        "limits": sorted(hit.limit for hit in finished.limits_hit),
    }
    problems = []
    if expected.broken and (said["verdict"], said["signal"]) == ("SIGNALED", 9):
        return ""
    if expected.broken and not finished.attested:
        return "" if said["verdict"] == "EXITED" else f"an unattested {said['verdict']} ({finished.message})"
    if said["verdict"] != expected.verdict:
        problems.append("verdict")
    if expected.verdict in ("EXITED", "EXCEPTION", "SIGNALED"):
        problems += [name for name in ("exit_code", "signal", "exception") if said[name] != getattr(expected, name)]
    if expected.sender and sender != expected.sender:
        problems.append("sender")
    if expected.limit and expected.limit not in said["limits"]:
        problems.append("limits")
    if not expected.limit and said["limits"]:
        problems.append("limits")
    return f"{', '.join(problems)}: expected {expected}, was told {said} ({finished.message})" if problems else ""


class Place:
    """A sandbox in which one program after the other runs."""

    def __init__(self, stubs: Stubs, number: int) -> None:
        self._stubs, self.sandbox_id = stubs, f"verdicts-{number}"

    async def make(self) -> None:
        """Makes the sandbox."""
        spec = sandbox_pb.SandboxSpec(memory_limit_bytes=MEMORY_BYTES, pids_limit=128)
        await self._stubs.sandboxes.CreateSandbox(
            sandbox_pb.CreateSandboxRequest(sandbox_id=self.sandbox_id, spec=spec), timeout=PATIENCE_S
        )

    async def run(self, case: Case) -> pb.Finished:
        """Runs a program to its end and returns what is said of that."""
        spec = pb.ExecutionSpec(
            sandbox_id=self.sandbox_id,
            tool=case.tool,
            parameters_json=json.dumps(dict(case.parameters)),
            timeout_s=case.timeout_s,
            **case.more,
        )
        if not case.caller_signal:
            answer = await self._stubs.executions.Run(pb.RunRequest(spec=spec), timeout=PATIENCE_S)
            return answer.finished
        call = self._stubs.executions.Execute(timeout=PATIENCE_S)
        await call.write(pb.ExecuteRequest(start=spec))
        sent, execution_id = False, ""
        while (answer := await call.read()) is not aio.EOF:
            event = answer.event
            execution_id = event.started.execution_id or execution_id
            if event.HasField("output") and not sent:
                sent = True
                await self._send(call, execution_id, case.caller_signal)
            if event.HasField("finished"):
                return event.finished
        raise AssertionError("an execution without an end")

    async def _send(self, call: Any, execution_id: str, number: int) -> None:
        """Sends a signal in one of the two ways there are."""
        wanted = pb.Signal(signal=number)
        if number % 2:
            await call.write(pb.ExecuteRequest(signal=wanted))
        else:
            request = pb.SignalExecutionRequest(execution_id=execution_id, signal=wanted)
            await self._stubs.executions.SignalExecution(request, timeout=PATIENCE_S)


async def run_all(daemon: DaemonProcess, runs: Mapping[str, int], *, seed: int, parallel: int = PARALLEL) -> Tally:
    """Runs so many programs of each kind, in several sandboxes at once."""
    chance = random.Random(seed)
    waiting = [(kind, KINDS[kind](chance)) for kind, count in runs.items() for _ in range(count)]
    chance.shuffle(waiting)
    tally = Tally(runs=Counter(dict.fromkeys(runs, 0)))
    async with aio.insecure_channel(daemon.address) as channel:
        stubs = Stubs(channel)

        async def work(number: int) -> None:
            place = Place(stubs, number)
            await place.make()
            while waiting:
                kind, case = waiting.pop()
                problem = mismatch(case, await place.run(case))
                tally.runs[kind] += 1
                if problem:
                    tally.wrong[kind] += 1
                    tally.described.append(f"{kind}: {case.name}: {problem}")

        async with asyncio.TaskGroup() as group:
            for number in range(parallel):
                group.create_task(work(number))
    return tally


async def campaign(runs: Mapping[str, int], seed: int, parallel: int) -> Tally:
    """Runs them on a daemon of their own."""
    ground = Ground()
    try:
        daemon = await ground.daemon()
        tally = await run_all(daemon, runs, seed=seed, parallel=parallel)
        daemon.check_log()
        daemon.send(signal.SIGTERM)
        await daemon.ended()
    finally:
        ground.clear()
    return tally


def main(arguments: Sequence[str]) -> int:
    """Runs what the command line asks for, and prints the report. The exit code is 0 if nothing was misclassified."""
    parser = argparse.ArgumentParser(prog="verdicts", description="Checks what is said of how programs ended.")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs of each kind (default: {RUNS})")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="only this kind; may be repeated")
    parser.add_argument("--seed", type=int, default=None, help="repeats an earlier choice of programs")
    parser.add_argument("--parallel", type=int, default=PARALLEL, help=f"sandboxes at once (default: {PARALLEL})")
    options = parser.parse_args(arguments)
    seed = int(time.time()) if options.seed is None else options.seed
    started = time.monotonic()
    tally = asyncio.run(campaign(dict.fromkeys(options.kind or KINDS, options.runs), seed, options.parallel))
    print(tally.report())
    print(f"seed {seed}, {time.monotonic() - started:.0f} s")
    return int(tally.wrong.total() > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
