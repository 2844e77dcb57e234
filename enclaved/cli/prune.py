"""``enclaved prune``: removes what daemons that are gone left."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

import click

from enclaved.cli.common import ExitCode, config_option, leave
from enclaved.config import load
from enclaved.errors import EnclaveError


@click.command()
@config_option
@click.option("--state-dir", metavar="DIRECTORY", help="State directory to look at; default: the setting state.dir.")
@click.option("--all", "everything", is_flag=True, help="Also remove the sandboxes that the next daemon would take up.")
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def prune(file: Path | None, state_dir: str | None, everything: bool, dry_run: bool, as_json: bool) -> None:
    """Removes what daemons that are gone left: containers, directories, sockets, half-written files.

    It looks at the state directory, unless a daemon uses that (which looks for leftovers itself), and at those of this
    user's embedded daemons whose program is gone. Only what is provably of such a directory is removed. Sandboxes that
    the next daemon would take up stay, but for --all.

    \b
    Examples:
      enclaved prune --dry-run
      enclaved prune --json | jq '.removed[].name'
      enclaved prune --all --state-dir /var/lib/enclaved    nothing of it stays on the engine
    """
    from enclaved import daemon  # the other commands do without it

    settings = load(file, flags={} if state_dir is None else {"state.dir": state_dir}).settings
    try:
        found = asyncio.run(daemon.prune(settings, dry_run=dry_run, everything=everything))
    except EnclaveError as error:
        leave(ExitCode.FAILED, str(error))
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, **asdict(found)}, indent=2))
    else:
        done = "would remove" if dry_run else "removed"
        for what, things in ((done, found.removed), ("kept", found.kept), ("failed", found.failed)):
            for thing in things:
                size = f", {thing.size_bytes / 1024:.0f} KiB" if thing.size_bytes else ""
                click.echo(f"{what}: {thing.sort} {thing.name}{size}: {thing.reason}")
        size_bytes = sum(thing.size_bytes for thing in found.removed)
        click.echo(f"{done} {len(found.removed)} things, {size_bytes / 1024:.0f} KiB")
    if found.failed:
        leave(ExitCode.FAILED, f"{len(found.failed)} things could not be removed; see above")
