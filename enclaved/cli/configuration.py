"""``enclaved config``: shows and checks the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from enclaved.cli.common import ExitCode, as_toml, config_option, leave
from enclaved.config import SETTINGS, Setting, load


@click.group(no_args_is_help=False)
def config() -> None:
    """Shows and checks the configuration."""


@config.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def show(file: Path | None, as_json: bool) -> None:
    """Prints every setting in force and where its value came from.

    \b
    Examples:
      enclaved config show
      ENCLAVED_LIMITS_CPU_MAX=4 enclaved config show --json | jq '.["limits.cpu_max"]'
    """
    configuration = load(file)
    for warning in configuration.warnings:
        click.echo(f"enclaved: warning: {warning}", err=True)
    settings, origins = configuration.settings, configuration.origins
    values = {setting.key: _shown(setting, settings.value(setting.key)) for setting in SETTINGS}
    for problem in settings.bad_pools:
        click.echo(f"enclaved: not used: {problem}", err=True)
    if as_json:
        shown: dict[str, Any] = {key: {"value": values[key], "origin": origin} for key, origin in origins.items()}
        if settings.pools:
            shown["pools"] = {"value": [pool.model_dump(exclude_unset=True) for pool in settings.pools]}
        if settings.runtime_classes:
            shown["runtime_classes"] = {"value": [each.model_dump() for each in settings.runtime_classes]}
        click.echo(json.dumps(shown, indent=2))
        return
    lines = [(f"{key} = {as_toml(values[key])}", origin) for key, origin in origins.items()]
    width = max(len(line) for line, _ in lines)
    for line, origin in lines:
        click.echo(f"{line:{width}}  # {origin}")
    tables = [("pools", pool.model_dump(exclude_unset=True)) for pool in settings.pools]
    tables += [("runtime_classes", each.model_dump()) for each in settings.runtime_classes]
    for section, values in tables:
        click.echo("\n".join(["", f"[[{section}]]", *(f"{name} = {as_toml(value)}" for name, value in values.items())]))


def _shown(setting: Setting, value: Any) -> Any:
    return ["(hidden)"] * len(value) if setting.is_secret else value


@config.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
def check(file: Path | None) -> None:
    """Checks a configuration file without the environment, or what `enclaved run` would use here.

    \b
    Examples:
      enclaved config check my.toml
      enclaved config check
    """
    found = load() if file is None else load(file, environ={})
    if found.settings.bad_pools:
        leave(ExitCode.USAGE, *found.settings.bad_pools)
    click.echo(f"{file or 'the configuration'}: ok")
