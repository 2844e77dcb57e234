"""What the commands of ``enclaved`` share: how they end, and their common option."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

CallableT = TypeVar("CallableT", bound=Callable[..., Any])


class ExitCode(enum.IntEnum):
    """How the command ended."""

    OK = 0
    FAILED = 1
    USAGE = 2
    STATE_LOCKED = 4
    UNPROTECTED = 5


def leave(code: ExitCode, *lines: str) -> NoReturn:
    """Ends the command with lines on standard error."""
    for line in lines:
        click.echo(f"enclaved: {line}", err=True)
    sys.exit(code)


def config_option(command: CallableT) -> CallableT:
    """Adds the option that names the configuration file."""
    text = "Configuration file; default: ENCLAVED_CONFIG, else /etc/enclaved/config.toml if it exists."
    return click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help=text)(command)


def as_toml(value: object) -> str:
    """Writes a value as in a configuration file."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {json.dumps(inner)}" for name, inner in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
