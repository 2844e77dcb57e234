"""Reads what a command line says of a sandbox that somebody wants."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from pydantic import ValidationError

from ms_enclave._model import DockerSandboxConfig

_OPTIONS: Final = {
    "memory_limit": "memory",
    "cpu_limit": "cpu",
    "env_vars": "env",
    "idle_timeout": "idle-timeout",
    "pids_limit": "pids",
    "ports": "publish",
    "volumes": "volume",
    "extra_hosts": "add-host",
}


def config(context: click.Context, asked: Mapping[str, Any]) -> DockerSandboxConfig:
    """Makes a configuration of what was asked for. Raises ``UsageError`` that names the option which is wrong."""
    try:
        return DockerSandboxConfig(**asked)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        field = str(first["loc"][0])
        if field == "resource_limits":
            field = message.split()[0]  # these texts begin with the name of the limit
        raise click.UsageError(f"--{_OPTIONS.get(field, field)}: {message}", context) from None


def variables(texts: Sequence[str]) -> dict[str, str]:
    """Reads ``NAME=VALUE``, and ``NAME`` as our own variable of that name, if there is one."""
    found = {}
    for text in texts:
        name, given, value = text.partition("=")
        if given or name in os.environ:
            found[name] = value if given else os.environ[name]
    return found


def labels(context: click.Context, texts: Sequence[str]) -> dict[str, str]:
    """Reads ``NAME=VALUE``. Raises ``UsageError`` for anything else."""
    pairs = [text.partition("=") for text in texts]
    if not all(name and equals for name, equals, _ in pairs):
        raise click.UsageError("--label: must look like NAME=VALUE", context)
    return {name: value for name, _, value in pairs}
