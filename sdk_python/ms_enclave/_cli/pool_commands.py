"""The commands for pools: sandboxes kept ready, for calls and for whoever claims one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import click

from ms_enclave._cli import listing, wishes
from ms_enclave._cli.options import address_option, json_option, print_json, running_daemon
from ms_enclave._cli.pool_run import run
from ms_enclave._model import DockerSandboxConfig
from ms_enclave._model.config import memory_bytes
from ms_enclave._model.pools import Lease, PoolChange, PoolClaim, PoolOptions, PoolStats
from ms_enclave._transports.base import SandboxPlan
from ms_enclave._transports.grpc import GrpcTransport

_T = TypeVar("_T")


@click.group(no_args_is_help=False)
def pool() -> None:
    """Makes, shows and changes pools: sandboxes that are ready before somebody needs one.

    \b
    Examples:
      ms-enclave pool init py --size 4 --preload json
      ms-enclave pool run py -c 'print(1)'
      ms-enclave pool claim py
    """


@pool.command(name="list")
@address_option
@json_option
def list_pools(address: str | None, as_json: bool) -> None:
    """Lists the pools of a daemon, oldest first.

    \b
    Example:
      ms-enclave pool list --json | jq -r '.[] | select(.trouble != "").id'
    """
    found = _asked(address, lambda transport: transport.pools.list())
    if as_json:
        print_json([_json(each) for each in found])
        return
    rows = listing.table("ID", "SIZE", "IDLE", "WAITING", "RUNS", "CLAIMS", "REPLACED", "ORIGIN", "TROUBLE")
    for each in found:
        numbers = (
            each.size,
            each.idle,
            each.waiting,
            *(each.counters[name] for name in ("runs", "claims", "replaced")),
        )
        rows.add_row(each.id, *map(str, numbers), each.origin, each.trouble)
    listing.print_table(rows)


@pool.command()
@click.argument("name")
@address_option
@json_option
def show(name: str, address: str | None, as_json: bool) -> None:
    """Shows the members of a pool, in the order of their slots.

    \b
    Example:
      ms-enclave pool show py
    """
    _show(_asked(address, lambda transport: transport.pools.get(name)), as_json)


@pool.command()
@click.argument("name")
@click.option("--size", type=click.IntRange(1, 100), required=True, metavar="N", help="Members.")
@click.option("--image", metavar="IMAGE", help="Image of the sandboxes. [python:3.11-slim]")
@click.option("--memory", metavar="SIZE", help="Memory of each, such as 512m or 2g.")
@click.option("--cpu", type=float, metavar="CORES", help="CPU time per wall time of each, such as 0.5.")
@click.option("--preload", multiple=True, metavar="MODULE", help="Have it imported before a call. Repeatable.")
@click.option("--context", "contexts", multiple=True, metavar="NAME", help="Have it open before a call. Repeatable.")
@click.option("--max-age", type=float, metavar="SECONDS", help="Replace members that are older.")
@click.option("--refill", type=float, metavar="RATE", help="Members made in a second at most in place of others. [4]")
@address_option
@json_option
@click.pass_context
def init(
    context: click.Context,
    /,
    name: str,
    size: int,
    image: str | None,
    memory: str | None,
    cpu: float | None,
    preload: Sequence[str],
    contexts: Sequence[str],
    max_age: float | None,
    refill: float | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Makes a pool and waits until all members run; leaves one that is there alone. Prints their ids.

    \b
    Examples:
      ms-enclave pool init py --size 4
      ms-enclave pool init data --size 2 --preload json --preload csv --memory 1g
    """
    asked = {"image": image, "memory_limit": memory, "cpu_limit": cpu}
    try:
        config = DockerSandboxConfig.model_validate({key: value for key, value in asked.items() if value is not None})
        memory_bytes(config.memory_limit)
    except ValueError as error:
        raise click.UsageError(" ".join(str(error).split())[:300], context) from None
    plan = SandboxPlan("", config, None)
    options = PoolOptions(tuple(contexts), tuple(preload), max_age, refill)
    ids = _asked(address, lambda transport: transport.initialize_pool(name, size, plan, options))
    if as_json:
        print_json({"id": name, "sandbox_ids": ids})
    else:
        click.echo("\n".join(ids))


@pool.command()
@click.argument("name")
@click.argument("size", type=click.IntRange(1, 100))
@address_option
@json_option
def resize(name: str, size: int, address: str | None, as_json: bool) -> None:
    """Changes how many members a pool has while it serves.

    \b
    Example:
      ms-enclave pool resize py 8
    """
    _show(_asked(address, lambda transport: transport.pools.update(name, PoolChange(size=size))), as_json)


@pool.command()
@click.argument("name")
@click.option("--ttl", type=float, metavar="SECONDS", help="Time to live from now on.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Label of the sandbox. Repeatable.")
@click.option("--memory", metavar="SIZE", help="Other memory than the pool's, such as 2g.")
@click.option("--cpu", type=float, metavar="CORES", help="Other CPU time per wall time than the pool's.")
@click.option("--wait", type=float, metavar="SECONDS", help="How long to wait for a free one. [60]")
@address_option
@json_option
@click.pass_context
def claim(
    context: click.Context,
    /,
    name: str,
    ttl: float | None,
    labels: Sequence[str],
    memory: str | None,
    cpu: float | None,
    wait: float | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Takes a sandbox out of a pool as one of your own, and prints its id. Remove it with "ms-enclave rm".

    \b
    Examples:
      box=$(ms-enclave pool claim py --ttl 600)
      ms-enclave exec "$box" -- python3 -c 'print(1)'
    """
    pairs = wishes.labels(context, labels)
    try:
        memory_limit_bytes = None if memory is None else memory_bytes(memory)
    except ValueError as error:
        raise click.UsageError(f"--memory: {error}", context) from None
    wanted = PoolClaim(ttl, pairs, memory_limit_bytes, cpu)
    info = _asked(address, lambda transport: transport.pools.claim(name, wanted, wait))
    if as_json:
        print_json(listing.as_json(info))
    else:
        click.echo(info.id)


@pool.command()
@click.argument("name")
@click.option("-n", "--most", type=click.IntRange(1, 1000), default=20, metavar="N", help="How many. [20]")
@address_option
@json_option
def leases(name: str, most: int, address: str | None, as_json: bool) -> None:
    """Shows the last uses of a pool's members, newest first, and what the reset after each has shown.

    LEFT counts what a call left behind and could not be removed: such a member is replaced.

    \b
    Example:
      ms-enclave pool leases py --json | jq '.[].proof'
    """
    found = _asked(address, lambda transport: transport.pools.leases(name, most))
    if as_json:
        print_json([{**asdict(each), "created_at": each.created_at.isoformat()} for each in found])
        return
    rows = listing.table("NUMBER", "SANDBOX", "FOR", "TOOL", "VERDICT", "WAITED", "HELD", "RESET", "OUTCOME", "LEFT")
    for each in found:
        times = (f"{seconds * 1000:.1f} ms" for seconds in (each.waited_s, each.held_s, each.reset_s))
        outcome = f"{each.outcome}: {each.reason}" if each.reason else each.outcome
        rows.add_row(
            str(each.number), each.sandbox_id, each.kind, each.tool, each.verdict, *times, outcome, _left(each)
        )
    listing.print_table(rows)


@pool.command()
@click.argument("name")
@address_option
@json_option
def delete(name: str, address: str | None, as_json: bool) -> None:
    """Deletes a pool with its members. Sandboxes that were claimed stay.

    \b
    Example:
      ms-enclave pool delete py
    """
    _asked(address, lambda transport: transport.delete_pool(name))
    if as_json:
        print_json({"deleted": name})
    else:
        click.echo(name)


def _asked(address: str | None, ask: Callable[[GrpcTransport], Awaitable[_T]]) -> _T:
    async def asked() -> _T:
        return await ask(await running_daemon(address))

    return asyncio.run(asked())


def _json(found: PoolStats) -> dict[str, Any]:
    return {**asdict(found), "idle": found.idle, "created_at": found.created_at.isoformat()}


def _show(found: PoolStats, as_json: bool) -> None:
    if as_json:
        print_json(_json(found))
        return
    rows = listing.table("SLOT", "SANDBOX", "STATE", "AGE", "CALLS")
    for member in found.members:
        rows.add_row(str(member.slot), member.sandbox_id, member.state, f"{member.age_s:.0f} s", str(member.calls))
    listing.print_table(rows)
    if found.trouble:
        click.echo(found.trouble, err=True)


def _left(lease: Lease) -> str:
    if lease.proof is None:
        return ""
    return str(sum(count for name, count in lease.proof.items() if name.endswith(("_left", "_changed"))))


pool.add_command(run)
