"""``enclaved doctor``: examines the host, and with ``--attack`` proves on real sandboxes that nothing gets out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enclaved.cli.common import ExitCode, config_option, leave
from enclaved.config import Settings, load

if TYPE_CHECKING:
    from enclaved.doctor.report import AttackReport
    from enclaved.doctor.stage import Result

_SEVERITIES = ("note", "warning", "failure")


@click.command()
@config_option
@click.option("--attack", is_flag=True, help="Run hostile programs and clients against real sandboxes.")
@click.option("--category", "categories", multiple=True, metavar="CATEGORY", help="Only attacks of this category.")
@click.option("--only", "ids", multiple=True, metavar="ID", help="Only the attack of this id.")
@click.option("--keep-going/--fail-fast", default=True, help="Whether to play the rest after a failed attack.")
@click.option("--address", metavar="ADDRESS", default="", help="Attack this daemon instead of one of the doctor's own.")
@click.option("--list", "lists", is_flag=True, help="List the attacks and what each tries.")
@click.option(
    "--fail-on",
    type=click.Choice(_SEVERITIES),
    default="failure",
    show_default=True,
    help="Least severity of a finding that is exit code 1.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def doctor(
    file: Path | None,
    attack: bool,
    categories: tuple[str, ...],
    ids: tuple[str, ...],
    keep_going: bool,
    address: str,
    lists: bool,
    fail_on: str,
    as_json: bool,
) -> None:
    """Examines this host for sandboxes, and says how to mend what it finds. Changes nothing.

    With --attack it runs its hostile programs and clients against a daemon of its own, with the engine, the image and
    the profile of the configuration, and prints how many of them were contained. All of them are bounded, and touch
    nothing but sandboxes and loopback. With --address it attacks a daemon that runs, as far as a client can judge.

    \b
    Examples:
      enclaved doctor
      enclaved doctor --fail-on warning --json | jq '.findings[] | select(.severity != "ok")'
      enclaved doctor --attack
      enclaved doctor --attack --category escape --category network
      enclaved doctor --attack --only resources.fork-bomb --json

    \b
    Exit codes:
      0  nothing of the severity of --fail-on; every attack contained
      1  something was found, or something was not contained
      2  the command line or the configuration is wrong
    """
    if lists:
        _list(as_json)
        return
    if not attack and (categories or ids or address):
        raise click.UsageError("--category, --only and --address go with --attack")
    configuration = load(file)
    if attack:
        _attack(configuration.settings, file, categories, ids, keep_going, address, as_json)
    else:
        _examine(configuration.settings, file, fail_on, as_json)


def _list(as_json: bool) -> None:
    from enclaved.doctor.attacks.suite import SUITE  # the other commands do without it

    if as_json:
        known = [{"id": one.id, "category": one.category.value, "what": one.sentence} for one in SUITE]
        click.echo(json.dumps(known, indent=2))
        return
    width = max(len(one.id) for one in SUITE)
    for one in SUITE:
        click.echo(f"{one.id:{width}}  {one.sentence}")


def _examine(settings: Settings, file: Path | None, fail_on: str, as_json: bool) -> None:
    from enclaved.doctor.checks.examination import examine
    from enclaved.doctor.checks.findings import Severity

    findings = examine(settings, file)
    worst = max((finding.severity for finding in findings), default=Severity.OK)
    if as_json:
        shown = [
            {"id": one.id, "severity": one.severity.name.lower(), "what": one.what, "fix": one.fix} for one in findings
        ]
        click.echo(json.dumps({"worst": worst.name.lower(), "findings": shown}, indent=2))
    else:
        for finding in sorted(findings, key=lambda one: one.severity):
            click.echo(f"{finding.severity.name.lower():8} {finding.id}: {finding.what}")
            if finding.fix and finding.severity > Severity.OK:
                click.echo(f"{'':8} fix: {finding.fix}")
        counts = {severity: sum(one.severity is severity for one in findings) for severity in Severity}
        click.echo(", ".join(f"{count} {severity.name.lower()}" for severity, count in counts.items() if count))
    if worst >= Severity[fail_on.upper()]:
        sys.exit(ExitCode.FAILED)


def _attack(
    settings: Settings,
    file: Path | None,
    categories: tuple[str, ...],
    ids: tuple[str, ...],
    keep_going: bool,
    address: str,
    as_json: bool,
) -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC would write lines of its own; read when it is loaded

    from enclaved.doctor.attacking import AttackFailed, NoSuchAttack, chosen
    from enclaved.doctor.attacking import attack as play

    try:
        attacks = chosen(categories, ids)
    except NoSuchAttack as error:
        raise click.UsageError(str(error)) from error
    try:
        report = asyncio.run(
            _cleared_up(
                play(
                    settings,
                    file,
                    attacks,
                    address=address,
                    keep_going=keep_going,
                    done=_progress(len(attacks)) if sys.stderr.isatty() and not as_json else _silent,
                )
            )
        )
    except asyncio.CancelledError:
        leave(ExitCode.FAILED, "terminated")
    except AttackFailed as error:
        leave(ExitCode.FAILED, *str(error).splitlines())
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else "\n".join(report.lines()))
    if not report.passed:
        sys.exit(ExitCode.FAILED)


async def _cleared_up(work: Coroutine[Any, Any, AttackReport]) -> AttackReport:
    """Has SIGTERM and SIGHUP end the work as Ctrl-C does, so that nothing of it is left behind."""
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    return await task


def _silent(result: Result) -> None:
    """Says nothing."""


def _progress(count: int) -> Callable[[Result], None]:
    """Returns what shows on a terminal how many attacks were played."""
    played = 0

    def show(result: Result) -> None:
        nonlocal played
        played += 1
        end = "\n" if played == count else "\r"
        click.echo(f"{played:4} of {count}  {result.attack.id:40.40}", err=True, nl=False)
        click.echo(end, err=True, nl=False)

    return show
