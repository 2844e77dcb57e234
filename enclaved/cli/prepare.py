"""``enclaved prepare``: what has to be done on a machine before a daemon without privileges starts."""

from __future__ import annotations

from pathlib import Path

import click

from enclaved.cli.common import ExitCode, config_option, leave
from enclaved.config import load


@click.command()
@config_option
@click.option("--if-possible", is_flag=True, help="Say and do nothing where this user may not.")
def prepare(file: Path | None, if_possible: bool) -> None:
    """Limits the memory and the processes of all sandboxes together, below what the machine has.

    It needs root; the service's unit runs it before each start. The limits are [ceiling] of the configuration, and are
    those of the control group enclaved, above those of all sandboxes. An engine whose groups systemd makes uses
    enclaved.slice instead, which has limits of its own.

    \b
    Examples:
      sudo enclaved prepare
      sudo ENCLAVED_CEILING_PIDS=20000 enclaved prepare
    """
    settings = load(file).settings

    from enclaved import daemon  # the other commands do without it

    try:
        made = daemon.prepare(settings)
    except OSError as error:
        if if_possible:
            return
        hint = "run it as root, where the control groups can be written to"
        leave(ExitCode.FAILED, f"cannot limit all sandboxes together: {error.filename}: {error.strerror}; {hint}")
    if not if_possible:
        click.echo(f"all sandboxes together: {made.memory_bytes} bytes of memory, {made.pids} processes")
