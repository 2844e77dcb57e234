"""The commands that look at sandboxes and their daemon: ps, inspect, info, watch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, Final

import click

from ms_enclave._cli import listing
from ms_enclave._cli.options import address_option, json_option, print_json, running_daemon
from ms_enclave._model import (
    HealthCheckResult,
    SandboxEvent,
    SandboxEventKind,
    SandboxFilter,
    SandboxInfo,
    SandboxStatus,
    StateChange,
)

INFO_S: Final = 10.0
"""How long a daemon may take to describe itself; it asks its engine."""

_STATUSES = tuple(status.value for status in SandboxStatus if status is not SandboxStatus.BUSY)
_GRANTED: Final = ("owner", "ports", "command_execution_id", "waived")
"""What of the rest that is known of a sandbox is shown without --json, too."""
_label_option = click.option(
    "-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only with this label."
)
_status_option = click.option(
    "-s", "--status", "statuses", multiple=True, type=click.Choice(_STATUSES), help="Only those in this state."
)


@click.command()
@_label_option
@_status_option
@click.option("--older", type=float, metavar="SECONDS", help="Only those made longer ago.")
@click.option("--younger", type=float, metavar="SECONDS", help="Only those made since then.")
@address_option
@json_option
@click.pass_context
def ps(
    context: click.Context,
    /,
    labels: Sequence[str],
    statuses: Sequence[str],
    older: float | None,
    younger: float | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Lists the sandboxes of a daemon, oldest first.

    \b
    Examples:
      ms-enclave ps
      ms-enclave ps --label team=red --status running --older 3600
      ms-enclave ps --json | jq -r '.[] | select(.status == "error").id'
    """
    wanted = _filter(context, labels, statuses, older, younger)

    async def found() -> Sequence[SandboxInfo]:
        return (await (await running_daemon(address)).lifecycle.find(wanted)).sandboxes

    infos = asyncio.run(found())
    if as_json:
        print_json([listing.as_json(info) for info in infos])
    else:
        listing.show(infos)


@click.command()
@click.argument("sandbox_id", metavar="ID")
@address_option
@json_option
def inspect(sandbox_id: str, address: str | None, as_json: bool) -> None:
    """Shows one sandbox with all that is known of it, and the history of its states.

    \b
    Examples:
      ms-enclave inspect box
      ms-enclave inspect box --json | jq .history
    """

    async def looked() -> tuple[SandboxInfo, list[StateChange]]:
        transport = await running_daemon(address)
        return await transport.get_sandbox(sandbox_id), await transport.lifecycle.history(sandbox_id)

    info, history = asyncio.run(looked())
    if as_json:
        changes = [
            {"time": _time(one.time), "status": one.status.value, "cause": one.cause.value, "reason": one.reason}
            for one in history
        ]
        print_json({**listing.as_json(info), "config": info.config, "metadata": info.metadata, "history": changes})
        return
    shown: dict[str, Any] = {**listing.as_json(info)}
    shown |= {name: info.metadata[name] for name in _GRANTED if name in info.metadata}
    for name, value in shown.items():
        if value is not None and value != {}:
            click.echo(f"{name}: {json.dumps(value) if isinstance(value, dict | list) else value}")
    rows = listing.table("SINCE", "STATE", "CAUSE", "REASON")
    for change in history:
        rows.add_row(_time(change.time), change.status.value, change.cause.value, listing.text(change.reason))
    click.echo()
    listing.print_table(rows)


@click.command()
@address_option
@json_option
def info(address: str | None, as_json: bool) -> int:
    """Shows a daemon: its engine, what was seen to protect this host from sandboxes, and who we are to it.

    A protection is effective (a sandbox made for that has shown it), waived by the operator, absent where this host
    does not have it, failed, or unknown as long as nothing has looked.

    
    Examples:
      ms-enclave info
      ms-enclave info --json | jq '.protections | map_values(.state)'

    
    Exit codes:
      0  it answers, and no protection has failed
      1  it does not answer, or one has failed
    """

    async def asked() -> tuple[str, HealthCheckResult]:
        transport = await running_daemon(address)
        return transport.address, await transport.health(timeout_s=INFO_S)

    where, found = asyncio.run(asked())
    known = found.system_info
    protections = known["protections"]
    failed = any(each["state"] == "failed" for each in protections.values())
    if as_json:
        print_json({"address": where, "version": found.version, "healthy": found.healthy, **known})
        return int(failed)
    identity = known["identity"]
    engine = f"{known['engine']} {known['engine_version']}" if found.healthy else f"{known['engine']}, does not answer"
    click.echo(f"daemon: {found.version} at {where}")
    click.echo(f"engine: {engine}")
    click.echo(f"runtime classes: {', '.join(known['runtime_classes']) or 'runc'}")
    click.echo(f"you: {identity['name']}, role {identity['role']} ({identity['kind']})")
    click.echo(f"sandboxes: {found.active_sandboxes}, executions: {known['active_executions']}")
    rows = listing.table("PROTECTION", "STATE", "SEEN")
    for name, each in protections.items():
        rows.add_row(name, each["state"], listing.text(each["detail"]))
    click.echo()
    listing.print_table(rows)
    return int(failed)


@click.command()
@_label_option
@_status_option
@click.option("--since", type=click.IntRange(0), default=0, metavar="REVISION", help="From there on. [from now on]")
@address_option
@json_option
@click.pass_context
def watch(
    context: click.Context,
    /,
    labels: Sequence[str],
    statuses: Sequence[str],
    since: int,
    address: str | None,
    as_json: bool,
) -> None:
    """Prints every change of sandboxes as it happens, until Ctrl-C. With --json one object on each line.

    Goes on over restarts of the daemon. --since takes the revision of a line that was printed before.

    \b
    Examples:
      ms-enclave watch
      ms-enclave watch --label team=red --status error --json
    """
    wanted = _filter(context, labels, statuses, None, None)

    async def watched() -> None:
        lifecycle = (await running_daemon(address)).lifecycle
        async with aclosing(lifecycle.watch(wanted, since)) as events:
            async for event in events:
                if as_json:
                    click.echo(json.dumps(_event(event)))
                elif event.kind is not SandboxEventKind.BOOKMARK:
                    click.echo(_line(event))

    asyncio.run(watched())


def _filter(
    context: click.Context,
    labels: Sequence[str],
    statuses: Sequence[str],
    older_s: float | None,
    younger_s: float | None,
) -> SandboxFilter:
    wanted: dict[str, str] = {}
    for label in labels:
        name, equals, value = label.partition("=")
        if not equals:
            raise click.UsageError(f"--label {label}: write KEY=VALUE", context)
        wanted[name] = value
    now = datetime.now().astimezone()
    try:
        before = None if older_s is None else now - timedelta(seconds=older_s)
        after = None if younger_s is None else now - timedelta(seconds=younger_s)
    except (OverflowError, ValueError):
        raise click.UsageError("--older and --younger: so long ago there was nothing", context) from None
    chosen = tuple(SandboxStatus(status) for status in statuses)
    return SandboxFilter(wanted, chosen, created_before=before, created_after=after)


def _event(event: SandboxEvent) -> dict[str, Any]:
    shown: dict[str, Any] = {"kind": event.kind.value, "revision": event.revision}
    if event.info is not None:
        shown |= {
            "time": None if event.time is None else _time(event.time),
            "cause": None if event.cause is None else event.cause.value,
            "matches": event.matches,
            "sandbox": listing.as_json(event.info),
        }
    return shown


def _line(event: SandboxEvent) -> str:
    if event.info is None or event.time is None or event.cause is None:
        return f"{event.revision}  {event.kind.value}"
    reason = event.info.metadata.get("state_reason")
    words = [str(event.revision), _time(event.time), event.kind.value, event.info.id, event.info.status.value]
    return "  ".join([*words, event.cause.value, *([reason] if reason else [])])


def _time(moment: datetime) -> str:
    return moment.astimezone().isoformat(timespec="milliseconds")


COMMANDS: Final = (ps, inspect, info, watch)
