"""The commands for sandboxes that stay: create, start, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import click

from ms_enclave._cli import listing, wishes
from ms_enclave._cli.lifecycle_commands import change
from ms_enclave._cli.options import address_option, json_option, print_json, running_daemon
from ms_enclave._cli.requests import granted_requests, request_options
from ms_enclave._model import SandboxInfo
from ms_enclave._transports.base import SandboxPlan
from ms_enclave.errors import DaemonUnavailable


@click.command()
@click.argument("name", required=False, default="")
@click.option("--image", metavar="IMAGE", help="Image of the sandbox. [python:3.11-slim]")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Label of the sandbox. Repeatable.")
@click.option("--memory", metavar="SIZE", help="Memory, such as 512m or 2g.")
@click.option("--cpu", "--cpus", "cpu", type=float, metavar="CORES", help="CPU time per wall time, such as 0.5.")
@click.option("--pids", type=int, metavar="N", help="Processes and threads at once.")
@click.option("--ttl", type=float, metavar="SECONDS", help="Time to live.")
@click.option("--idle-timeout", type=float, metavar="SECONDS", help="Time without use until it is removed; 0: none.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable, or pass on ours. Repeatable.")
@request_options
@click.option("--command", metavar="COMMAND", help="A program that starts with it, as words of a shell.")
@click.option("--keep", is_flag=True, help="Keep its files when it is stopped.")
@click.option("--request-id", default="", metavar="ID", help="The same id again is the same sandbox, not another one.")
@address_option
@json_option
@click.pass_context
def create(
    context: click.Context,
    /,
    name: str,
    labels: Sequence[str],
    keep: bool,
    request_id: str,
    address: str | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Makes a sandbox, waits until it can run programs, and prints its id: NAME, or one that the daemon chooses.

    It stays until its time to live is over or "ms-enclave rm" removes it, so it needs a daemon that runs already. A
    script that cannot know whether it made the sandbox repeats the command with the same --request-id.

    \b
    Examples:
      ms-enclave create box --memory 1g --ttl 3600
      box=$(ms-enclave create --label team=red --env LANG=C)
      ms-enclave create web --network -p 8080 -v ./site:/site --command 'python3 -m http.server -d /site 8080'
      ms-enclave exec "$box" -- python3 -c 'print(1)'
    """
    config = wishes.config(context, _asked(context, keep=keep, **limits))
    plan = SandboxPlan(name, config, None, wishes.labels(context, labels))

    async def created() -> SandboxInfo:
        try:
            transport = await running_daemon(address)
        except DaemonUnavailable as error:
            text = f"nothing would keep the sandbox after this command: {error}, and --address names another one"
            raise DaemonUnavailable(text) from None
        return await transport.create_sandbox(plan, request_id=request_id)

    info = asyncio.run(created())
    if as_json:
        print_json(listing.as_json(info))
    else:
        click.echo(info.id)


def _asked(
    context: click.Context,
    *,
    keep: bool,
    image: str | None,
    memory: str | None,
    cpu: float | None,
    env: Sequence[str],
    command: str | None,
    pids: int | None,
    ttl: float | None,
    idle_timeout: float | None,
    **requests: Any,
) -> dict[str, Any]:
    """Returns the fields of a configuration that somebody asked for; the rest is the daemon's to decide."""
    limits = {"pids_limit": pids, "ttl": ttl, "idle_timeout": idle_timeout}
    wanted = {
        "image": image,
        "memory_limit": memory,
        "cpu_limit": cpu,
        "env_vars": wishes.variables(env),
        "remove_on_exit": False if keep else None,
        "resource_limits": {name: value for name, value in limits.items() if value is not None},
        "command": command,
        **granted_requests(context, **requests),
    }
    return {name: value for name, value in wanted.items() if value not in (None, {})}


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@address_option
@json_option
def start(ids: Sequence[str], address: str | None, as_json: bool) -> None:
    """Starts stopped sandboxes again under the same ids. Prints the id of each.

    One that was made with --keep has its files, any other is empty. One that runs is left alone, and a paused one is
    resumed.

    \b
    Example:
      ms-enclave start box
    """
    change(ids, lambda transport, sandbox_id: transport.start_sandbox(sandbox_id), address, as_json)


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@address_option
@json_option
def stop(ids: Sequence[str], address: str | None, as_json: bool) -> None:
    """Stops sandboxes: kills what runs there at once. Prints the id of each.

    The files are gone as well, unless the sandbox was made with --keep. "ms-enclave start" starts it again, and
    "ms-enclave rm" removes it.

    \b
    Example:
      ms-enclave stop box
    """
    change(ids, lambda transport, sandbox_id: transport.stop_sandbox(sandbox_id), address, as_json)


COMMANDS: Final = (create, start, stop)
