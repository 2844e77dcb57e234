"""The options for what only a policy grants: a network, host directories, ports, names of hosts, other runtimes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

_CallableT = TypeVar("_CallableT", bound=Callable[..., Any])

_VOLUME = re.compile(r"(?P<host>[^:]+):(?P<bind>/[^:]*)(:(?P<mode>ro|rw))?")
_PORT = re.compile(r"((?P<host>[0-9]{1,5}):)?(?P<port>[0-9]{1,5})(/(?P<protocol>tcp|udp))?")
_HOST = re.compile(r"(?P<name>[^:=\s]+):(?P<address>\S+)")

_OPTIONS: Final = (
    click.option(
        "--network", is_flag=True, help="A network: the outside, but neither this machine nor other sandboxes."
    ),
    click.option(
        "-v",
        "--volume",
        "volumes",
        multiple=True,
        metavar="HOST:PATH[:rw]",
        help="A directory of the daemon's machine at PATH, to read, or with :rw to change. Repeatable.",
    ),
    click.option(
        "-p",
        "--publish",
        "ports",
        multiple=True,
        metavar="[HOST:]PORT[/udp]",
        help='A port of the sandbox on 127.0.0.1, with --network; "inspect" names it. Repeatable.',
    ),
    click.option(
        "--add-host", "hosts", multiple=True, metavar="NAME:ADDRESS", help="A line of its /etc/hosts. Repeatable."
    ),
    click.option("--runtime-class", metavar="NAME", help="What isolates it, such as runsc, where that is configured."),
)


def request_options(command: _CallableT) -> _CallableT:
    """Adds the options, whose values `granted_requests` reads."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def granted_requests(
    context: click.Context,
    *,
    network: bool,
    volumes: Sequence[str],
    ports: Sequence[str],
    hosts: Sequence[str],
    runtime_class: str | None,
) -> dict[str, Any]:
    """Returns the fields of a configuration that somebody asked for. Raises ``UsageError``."""
    found: dict[str, Any] = {}
    if network:
        found["network_enabled"] = True
    if runtime_class:
        found["runtime_class"] = runtime_class
    for text in volumes:
        volume = _read(context, _VOLUME, "--volume", text, "/data/set:/data or ./out:/out:rw")
        host = str(Path(volume["host"]).expanduser().absolute())
        _add(context, found, "volumes", host, {"bind": volume["bind"], "mode": volume["mode"] or "ro"})
    for text in ports:
        port = _read(context, _PORT, "--publish", text, "8080, 9000:8080 or 5353/udp")
        number = None if port["host"] is None else int(port["host"])
        _add(context, found, "ports", f"{port['port']}/{port['protocol'] or 'tcp'}", number)
    for text in hosts:
        host_line = _read(context, _HOST, "--add-host", text, "db:192.0.2.7")
        _add(context, found, "extra_hosts", host_line["name"], host_line["address"])
    return found


def _read(context: click.Context, form: re.Pattern[str], option: str, text: str, example: str) -> dict[str, str | Any]:
    match = form.fullmatch(text)
    if match is None:
        raise click.UsageError(f"{option}: {text!r} must look like {example}", context)
    return match.groupdict()


def _add(context: click.Context, found: dict[str, Any], field: str, name: str, value: Any) -> None:
    entries = found.setdefault(field, {})
    if name in entries:
        raise click.UsageError(f"{name} is named twice", context)
    entries[name] = value
