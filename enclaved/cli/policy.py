"""``enclaved policy``: checks, shows and explains who may ask for what."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import click

from enclaved.cli.common import ExitCode, config_option, leave
from enclaved.config import ConfigError, load, read_request, role_lines
from enclaved.core.policy import Outcome, Policy, Role, Ruling
from enclaved.errors import InvalidRequest

_REQUEST_BYTES_MAX = 1024 * 1024


@click.group(no_args_is_help=False)
def policy() -> None:
    """Checks, shows and explains who may ask for what."""


_policy_file = click.option(
    "--file", "policy_file", type=click.Path(path_type=Path), metavar="FILE", help="Policy file; default: policy.file."
)


@policy.command()
@click.argument("policy_file", type=click.Path(path_type=Path), metavar="[FILE]", required=False)
@config_option
def check(policy_file: Path | None, file: Path | None) -> None:
    """Checks a policy file, or the one that `enclaved run` would use here.

    Names the line of every mistake.

    \b
    Examples:
      enclaved policy check my-policy.toml
      enclaved policy check
    """
    found = _policy(file, policy_file)
    click.echo(f"{policy_file or found.rules.origin}: ok, roles: {', '.join(found.rules.roles)}")


@policy.command()
@_policy_file
@click.option("--role", metavar="ROLE", help="Only this role.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def show(policy_file: Path | None, role: str | None, file: Path | None, as_json: bool) -> None:
    """Prints every rule of every role, and where it was said. What is printed is itself a policy file.

    \b
    Examples:
      enclaved policy show --role default
      enclaved policy show --json | jq '.default.memory_max_bytes'
    """
    found = _policy(file, policy_file)
    roles = [_role(found, role)] if role else list(found.rules.roles.values())
    if as_json:
        shown = {each.name: _as_json(each) for each in roles}
        click.echo(json.dumps(shown, indent=2))
        return
    for each in roles:
        lines = list(role_lines(each))
        width = min(72, max(len(line.text) for line in lines))
        table = ""
        for line in lines:
            if line.table != table:
                click.echo(f"{'' if not table else chr(10)}[{line.table}]")
                table = line.table
            click.echo(f"{line.text:{width}}  # {line.origin}")
        click.echo()


@policy.command()
@click.argument("request", type=click.File("rb"), metavar="REQUEST.json")
@click.option("--role", default="default", show_default=True, metavar="ROLE", help="Whose role.")
@_policy_file
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def explain(request: BinaryIO, role: str, policy_file: Path | None, file: Path | None, as_json: bool) -> None:
    """Says what a request for a sandbox would be granted, which rule decided, and where that rule was said.

    REQUEST.json has the fields of a sandbox's specification over gRPC; `-` reads them from standard input. Exits with 1
    if the request would be refused.

    \b
    Examples:
      echo '{"network_enabled": true}' | enclaved policy explain -
      enclaved policy explain --role ci --file my-policy.toml request.json
    """
    found = _policy(file, policy_file)
    data = request.read(_REQUEST_BYTES_MAX + 1)
    if len(data) > _REQUEST_BYTES_MAX:
        raise ConfigError([f"the request has more than {_REQUEST_BYTES_MAX} bytes"])
    asked = read_request(data)
    try:
        rulings, spec = found.explain(asked, _role(found, role))
    except InvalidRequest as error:
        leave(ExitCode.FAILED, *(f"malformed: {each.field}: {each.description}" for each in error.violations))
    refused = [each for each in rulings if each.outcome is Outcome.REFUSED]
    if as_json:
        shown = {
            "granted": not refused,
            "role": role,
            "rulings": [dataclasses.asdict(each) for each in rulings],
            "spec": None if refused else dataclasses.asdict(spec),
        }
        click.echo(json.dumps(shown, indent=2, default=str))
    else:
        _print(rulings)
        click.echo(f"\nrole {role}: {'refused' if refused else 'granted'}")
    if refused:
        raise SystemExit(ExitCode.FAILED)


def _print(rulings: tuple[Ruling, ...]) -> None:
    for each in rulings:
        value = each.asked if each.outcome is Outcome.REFUSED else each.granted
        lowered = f" instead of {each.asked}" if each.outcome is Outcome.LOWERED else ""
        click.echo(f"{each.outcome.value:8} {each.field} = {value}{lowered}")
        click.echo(f"         by {each.rule}, {each.origin}")
        if each.why:
            click.echo(f"         {each.why}")


def _as_json(role: Role) -> dict[str, Any]:
    table = f"roles.{role.name}"
    return {
        line.key if line.table == table else f"{line.table.removeprefix(f'{table}.')}.{line.key}": {
            "value": line.value,
            "origin": line.origin,
        }
        for line in role_lines(role)
    }


def _role(found: Policy, name: str) -> Role:
    role = found.rules.roles.get(name)
    if role is None:
        leave(ExitCode.USAGE, f"there is no role {name!r}; known are {', '.join(found.rules.roles)}")
    return role


def _policy(file: Path | None, policy_file: Path | None) -> Policy:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from enclaved import daemon  # the other commands do without it

    try:
        return daemon.policy_of(load(file).settings, policy_file, working_dir=str(Path.cwd()))
    except daemon.StartError as error:
        leave(ExitCode.FAILED, str(error))
