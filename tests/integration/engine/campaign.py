"""Does everything to an engine that can happen to one, at full size, and prints what came of it.

``scripts/chaos --engine`` runs it by hand; the tests run the same at a small size.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.integration.engine import scenarios
from tests.integration.engine.private import private_engine
from tests.integration.engine.scenarios import Outcome, site
from tests.scripts.loading import load

SANDBOXES = 20
FROZEN_S = 60.0


async def campaign(count: int, frozen_s: float) -> list[Outcome]:
    """Runs every scenario on one private engine, one after the other."""
    outcomes = []
    with load("_console").Progress("engine failures", total=7) as progress:
        async with private_engine() as engine, site(engine) as here:
            for work in (
                scenarios.killed_and_restored(here, count),
                scenarios.killed_and_not_restored(here, count),
                scenarios.restarted(here, count, live_restore=True),
                scenarios.restarted(here, count, live_restore=False),
                scenarios.frozen(here, count, frozen_s),
                scenarios.cut_off(here, count),
                scenarios.full(here, count),
            ):
                outcomes.append(await work)
                progress.update(len(outcomes), outcomes[-1].what)
    return outcomes


def report(outcomes: Sequence[Outcome]) -> str:
    """The numbers as a table, and what was wrong."""
    lines = ["| what was done to the engine | how many | how long | faults |", "|---|---|---|---|"]
    faults = []
    for one in outcomes:
        counts = ", ".join(f"{what} {number}" for what, number in one.counts.items())
        seconds = ", ".join(f"{what} {spent:.2f} s" for what, spent in one.seconds.items())
        lines.append(f"| {one.what} | {counts} | {seconds} | {len(one.faults)} |")
        faults += [f"{one.what}: {fault}" for fault in one.faults]
    return "\n".join([*lines, "", *faults])


def main(arguments: Sequence[str]) -> int:
    """Does what the command line asks for, and prints the report. The exit code is 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(prog="chaos --engine", description="Breaks a private engine below a daemon.")
    parser.add_argument("--sandboxes", type=int, default=SANDBOXES, help=f"at once (default: {SANDBOXES})")
    parser.add_argument("--frozen", type=float, default=FROZEN_S, help=f"seconds to freeze it (default: {FROZEN_S:g})")
    parser.add_argument("--report", type=Path, default=None, help="a file for the report, in Markdown")
    parser.add_argument("--json", type=Path, default=None, help="a file for the numbers")
    options = parser.parse_args(arguments)
    outcomes = asyncio.run(campaign(options.sandboxes, options.frozen))
    text = report(outcomes)
    print(text)
    if options.report is not None:
        options.report.write_text(f"{text}\n")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=2) + "\n")
    return int(any(one.faults for one in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
