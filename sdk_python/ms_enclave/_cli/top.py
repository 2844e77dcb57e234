"""The command that shows what runs in a sandbox and what that uses."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from ms_enclave._cli import listing, streams
from ms_enclave._cli.options import address_option, json_option, print_json, running_daemon
from ms_enclave._cli.programs import STDOUT
from ms_enclave._model import ExecutionInfo, StatsSample
from ms_enclave._transports.base import ExecutionCalls
from ms_enclave.errors import EnclaveError

if TYPE_CHECKING:
    from rich.table import Table

ONCE_S: Final = 0.5
"""Time between the two samples of one look."""
PATIENCE_S: Final = 10.0
MEBIBYTE: Final = 1024 * 1024


@dataclass(slots=True)
class Watched:
    """One execution, with its last two samples."""

    info: ExecutionInfo
    before: StatsSample | None = None
    now: StatsSample | None = None

    @property
    def cores(self) -> float | None:
        """How many cores it kept busy between the samples; ``None`` until there are two."""
        if self.before is None or self.now is None or self.now.time_s <= self.before.time_s:
            return None
        used_s = (self.now.execution.cpu_user_s + self.now.execution.cpu_system_s) - (
            self.before.execution.cpu_user_s + self.before.execution.cpu_system_s
        )
        return max(0.0, used_s / (self.now.time_s - self.before.time_s))

    async def follow(self, calls: ExecutionCalls, interval_s: float, *, once: bool = False) -> None:
        """Takes up its samples until it ends, or with ``once`` until there are two."""
        follower = calls.attach(self.info.id, self.info.sandbox_id, {}, observe=True, stats_interval=interval_s)
        try:
            with contextlib.suppress(EnclaveError):  # it ended, or is out of reach: there is nothing more to show
                while (event := await follower.next()) is not None:
                    if isinstance(event, StatsSample):
                        self.before, self.now = self.now, event
                        if once and self.before is not None:
                            return
        finally:
            await follower.close()


@click.command()
@click.argument("sandbox")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, metavar="SECONDS", help="Look so often. [1]")
@address_option
@json_option
def top(sandbox: str, interval: float, address: str | None, as_json: bool) -> None:
    """Shows what runs in a sandbox and what it uses, until Ctrl-C; once, where no person looks.

    \b
    Examples:
      ms-enclave top box
      ms-enclave top box --json | jq '.[] | {execution_id, cores}'
    """

    async def show() -> None:
        calls = (await running_daemon(address)).executions
        if streams.is_terminal(STDOUT) and not as_json:
            await _live(calls, sandbox, interval)
            return
        found = [Watched(info) for info in await calls.list(sandbox, running=True)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*(one.follow(calls, ONCE_S, once=True) for one in found))
        if as_json:
            print_json([_json(one) for one in found])
        else:
            listing.print_table(_table(found))

    asyncio.run(show())


async def _live(calls: ExecutionCalls, sandbox: str, interval_s: float) -> None:
    from rich.console import Console  # which takes a while to load
    from rich.live import Live

    watched: dict[str, tuple[Watched, asyncio.Task[None]]] = {}
    with Live(console=Console(), auto_refresh=False, transient=True) as screen:
        while True:
            running = {info.id: info for info in await calls.list(sandbox, running=True)}
            for gone in watched.keys() - running.keys():
                watched.pop(gone)[1].cancel()
            for name in running.keys() - watched.keys():
                one = Watched(running[name])
                watched[name] = one, asyncio.create_task(one.follow(calls, interval_s))
            for name, (one, _) in watched.items():
                one.info = running[name]
            screen.update(_table([watched[name][0] for name in running]), refresh=True)
            await asyncio.sleep(interval_s)


def _table(found: list[Watched]) -> Table:
    table = listing.table("ID", "TOOL", "CPU", "MEMORY", "PIDS", "READ", "WRITTEN", "STATUS")
    for one in found:
        used = one.now.execution if one.now is not None else None
        table.add_row(
            one.info.id,
            one.info.tool,
            "" if one.cores is None else f"{one.cores:.2f}",
            *(
                ("", "", "", "")
                if used is None
                else (
                    f"{used.memory_bytes / MEBIBYTE:.1f} MiB",
                    str(used.pids),
                    f"{used.io_read_bytes / MEBIBYTE:.1f} MiB",
                    f"{used.io_write_bytes / MEBIBYTE:.1f} MiB",
                )
            ),
            "waits for input" if one.info.awaiting_input else "running",
        )
    return table


def _json(one: Watched) -> dict[str, Any]:
    sample = {"execution": None, "sandbox": None, "time_s": None} if one.now is None else asdict(one.now)
    return {"execution_id": one.info.id, "tool": one.info.tool, "cores": one.cores, **sample}
