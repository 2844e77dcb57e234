"""``enclaved token``: makes, lists and revokes the tokens with which others call the daemon."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from enclaved.cli.common import ExitCode, config_option, leave
from enclaved.config import load
from enclaved.core.tokens import Token, TokenStore, TokensUnusable
from enclaved.errors import EnclaveError
from enclaved.model import DEFAULT_ROLE

_CallableT = TypeVar("_CallableT", bound=Callable[..., Any])
_UNITS_S: Final = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_PERIOD = re.compile(r"([1-9][0-9]{0,5})([mhdwy])")


@click.group(no_args_is_help=False)
def token() -> None:
    """Makes, lists and revokes tokens: who may call the daemon where a key is needed.

    A change takes effect with the next call; the daemon need not be told. Run it as root or as the daemon's user.
    """


def _options(command: _CallableT) -> _CallableT:
    text = "State directory of the daemon; default: the setting state.dir."
    command = click.option("--state-dir", metavar="DIRECTORY", help=text)(command)
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")(command)
    return config_option(command)


class _Lifetime(click.ParamType["float | None"]):
    """A period such as 90d, or never."""

    name = "period"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Returns seconds; ``None`` for never."""
        if value == "never":
            return None
        found = _PERIOD.fullmatch(value)
        if found is None:
            self.fail(f"{value!r} is no period; write 90d, 12h, 30m, 4w, 1y or never", param, ctx)
        return float(int(found[1]) * _UNITS_S[found[2]])


@token.command()
@click.argument("name")
@click.option("--role", default=DEFAULT_ROLE, metavar="ROLE", show_default=True, help="Role in the policy.")
@click.option(
    "--expires",
    "lifetime_s",
    type=_Lifetime(),
    default="90d",
    metavar="PERIOD",
    show_default=True,
    help="How long it is valid: 90d, 12h, 30m, 4w, 1y or never.",
)
@_options
def create(
    name: str, role: str, lifetime_s: float | None, file: Path | None, state_dir: str | None, as_json: bool
) -> None:
    """Makes a token for NAME and prints its secret, this once: only a digest is kept.

    NAME says who calls: logs and sandboxes show it. Several tokens may have one name, so that one can replace another.

    \b
    Examples:
      enclaved token create ci --expires 30d
      MS_ENCLAVE_TOKEN=$(enclaved token create laptop) ms-enclave run --address https://box:50061 -c 'print(1)'
    """
    with _store(file, state_dir, makes=True) as store:
        secret, made = store.create(name, role=role, lifetime_s=lifetime_s)
    if as_json:
        click.echo(json.dumps({"token": secret, **_shown(made, time.time())}, indent=2))
        return
    until = "does not expire" if made.expires_at is None else f"expires {_time(made.expires_at)}"
    click.echo(f"enclaved: token {made.id} for {name} (role {role}) {until}; its secret is not shown again:", err=True)
    click.echo(secret)


@token.command("list")
@_options
def list_(file: Path | None, state_dir: str | None, as_json: bool) -> None:
    """Lists tokens, the newest first. Those that have opened nothing for 90 days may be gone.

    \b
    Examples:
      enclaved token list
      enclaved token list --json | jq -r '.[] | select(.state == "valid") | .name'
    """
    with _store(file, state_dir) as store:
        found = store.tokens()
    now = time.time()
    shown = [_shown(one, now) for one in found]
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    rows: list[tuple[str, ...]] = [("ID", "NAME", "ROLE", "STATE", "CREATED", "EXPIRES", "LAST USED")]
    rows += [tuple(str(line[key] or "never") for key in _COLUMNS) for line in shown]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@token.command()
@click.argument("which", metavar="ID|NAME")
@_options
def revoke(which: str, file: Path | None, state_dir: str | None, as_json: bool) -> None:
    """Revokes the token of an id, or all tokens of a name. Streams that run under them end within seconds.

    \b
    Examples:
      enclaved token revoke 1f0c93a2b4d5
      enclaved token revoke ci
    """
    with _store(file, state_dir) as store:
        found = store.revoke(which)
    if as_json:
        now = time.time()
        click.echo(json.dumps([_shown(one, now) for one in found], indent=2))
        return
    for one in found:
        click.echo(f"revoked {one.id} of {one.name}")


_COLUMNS: Final = ("id", "name", "role", "state", "created_at", "expires_at", "last_used_at")


@contextmanager
def _store(file: Path | None, state_dir: str | None, *, makes: bool = False) -> Iterator[TokenStore]:
    settings = load(file, flags={} if state_dir is None else {"state.dir": state_dir}).settings
    if not makes and state_dir is not None and not Path(state_dir).is_dir():
        leave(ExitCode.USAGE, f"{state_dir} is no directory; name the state directory of the daemon with --state-dir")
    with closing(TokenStore(Path(settings.state.dir))) as store:
        try:
            yield store
        except (EnclaveError, TokensUnusable) as error:
            leave(ExitCode.FAILED, str(error))


def _shown(one: Token, now: float) -> dict[str, str | None]:
    return {
        "id": one.id,
        "name": one.name,
        "role": one.role,
        "tenant": one.tenant,
        "state": one.state(now).value,
        "created_at": _time(one.created_at),
        "expires_at": _time(one.expires_at),
        "last_used_at": _time(one.last_used_at),
        "revoked_at": _time(one.revoked_at),
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
