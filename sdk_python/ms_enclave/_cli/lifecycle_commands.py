"""The commands that change sandboxes: pause, resume, update."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import click

from ms_enclave._cli import listing
from ms_enclave._cli.options import address_option, json_option, print_json, running_daemon
from ms_enclave._model import SandboxInfo
from ms_enclave._model.config import memory_bytes
from ms_enclave._transports.base import SandboxChange, Transport


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@address_option
@json_option
def pause(ids: Sequence[str], address: str | None, as_json: bool) -> None:
    """Freezes all processes of sandboxes where they are. Prints the id of each.

    Memory and files stay. Timeouts of executions stand still; the time to live goes on.

    \b
    Example:
      ms-enclave pause box
    """
    change(ids, lambda transport, sandbox_id: transport.lifecycle.pause(sandbox_id), address, as_json)


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@address_option
@json_option
def resume(ids: Sequence[str], address: str | None, as_json: bool) -> None:
    """Lets paused sandboxes go on where they were. Prints the id of each.

    \b
    Example:
      ms-enclave resume box
    """
    change(ids, lambda transport, sandbox_id: transport.lifecycle.resume(sandbox_id), address, as_json)


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--ttl", type=float, metavar="SECONDS", help="Time to live from now on.")
@click.option("--memory", metavar="SIZE", help="Memory, such as 512m or 2g.")
@click.option("--cpu", type=float, metavar="CORES", help="CPU time per wall time, such as 0.5.")
@click.option("--pids", type=int, metavar="N", help="Processes and threads at once.")
@click.option("--idle-timeout", type=float, metavar="SECONDS", help="Time without use until it is removed; 0: none.")
@address_option
@json_option
@click.pass_context
def update(
    context: click.Context,
    /,
    ids: Sequence[str],
    ttl: float | None,
    memory: str | None,
    cpu: float | None,
    pids: int | None,
    idle_timeout: float | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Changes the times to live and the limits of sandboxes while they run. Prints the id of each.

    \b
    Examples:
      ms-enclave update box --ttl 3600
      ms-enclave update box --memory 1g --cpu 2
    """
    try:
        wanted = SandboxChange(ttl, None, None if memory is None else memory_bytes(memory), cpu, pids, idle_timeout)
    except ValueError as error:
        raise click.UsageError(f"--memory: {error}", context) from None
    if wanted == SandboxChange():
        raise click.UsageError("name what to change: --ttl, --idle-timeout, --memory, --cpu, --pids", context)
    change(ids, lambda transport, sandbox_id: transport.lifecycle.update(sandbox_id, wanted), address, as_json)


def change(
    ids: Sequence[str],
    make: Callable[[Transport, str], Awaitable[SandboxInfo]],
    address: str | None,
    as_json: bool,
) -> None:
    """Does one thing to each sandbox, in this order, and prints the ids, or as JSON what became of them."""

    async def changed() -> list[dict[str, Any]]:
        transport = await running_daemon(address)
        found = []
        for sandbox_id in dict.fromkeys(ids):
            found.append(listing.as_json(await make(transport, sandbox_id)))
            if not as_json:
                click.echo(sandbox_id)
        return found

    shown = asyncio.run(changed())
    if as_json:
        print_json(shown)


COMMANDS: Final = (pause, resume, update)
