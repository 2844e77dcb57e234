"""The commands for contexts: persistent interpreters of a sandbox."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import click

from ms_enclave._cli import listing
from ms_enclave._cli.options import address_option, json_option, print_json, running_daemon
from ms_enclave._model import ContextInfo


@click.group(no_args_is_help=False)
def context() -> None:
    """Opens, lists, closes and resets contexts: Python interpreters of a sandbox that keep their variables.

    \b
    Examples:
      ms-enclave context open box analysis
      ms-enclave exec --context analysis box -- 'data = [1, 2, 3]'
      ms-enclave context list box
    """


@context.command(name="open")
@click.argument("sandbox")
@click.argument("name")
@address_option
@json_option
def open_context(sandbox: str, name: str, address: str | None, as_json: bool) -> None:
    """Opens a context; leaves one that is open alone.

    \b
    Example:
      ms-enclave context open box analysis
    """

    async def opened() -> ContextInfo:
        return await (await running_daemon(address)).contexts.open(sandbox, name)

    _show(asyncio.run(opened()), as_json)


@context.command(name="list")
@click.argument("sandbox")
@address_option
@json_option
def list_contexts(sandbox: str, address: str | None, as_json: bool) -> None:
    """Lists the contexts of a sandbox that are open, by name.

    \b
    Example:
      ms-enclave context list box --json | jq -r '.[].name'
    """

    async def found() -> list[ContextInfo]:
        return await (await running_daemon(address)).contexts.list(sandbox)

    infos = asyncio.run(found())
    if as_json:
        print_json([_json(info) for info in infos])
    else:
        listing.show_contexts(infos)


@context.command(name="close")
@click.argument("sandbox")
@click.argument("name")
@address_option
@json_option
def close_context(sandbox: str, name: str, address: str | None, as_json: bool) -> None:
    """Ends a context at once, with what runs in it.

    \b
    Example:
      ms-enclave context close box analysis
    """

    async def closed() -> None:
        await (await running_daemon(address)).contexts.close(sandbox, name)

    asyncio.run(closed())
    if as_json:
        print_json({"name": name, "sandbox_id": sandbox})
    else:
        click.echo(name)


@context.command(name="reset")
@click.argument("sandbox")
@click.argument("name")
@address_option
@json_option
def reset_context(sandbox: str, name: str, address: str | None, as_json: bool) -> None:
    """Gives a context a new interpreter: its variables are gone, and what runs in it is cancelled.

    \b
    Example:
      ms-enclave context reset box default
    """

    async def reset() -> ContextInfo:
        return await (await running_daemon(address)).contexts.reset(sandbox, name)

    _show(asyncio.run(reset()), as_json)


def _show(info: ContextInfo, as_json: bool) -> None:
    if as_json:
        print_json(_json(info))
    else:
        click.echo(info.name)


def _json(info: ContextInfo) -> dict[str, Any]:
    return {**asdict(info), "created_at": info.created_at.astimezone().isoformat()}
