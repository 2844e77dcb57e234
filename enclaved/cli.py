"""The command ``enclaved``: runs the daemon, shows its configuration, and clears up after it."""

from __future__ import annotations

import asyncio
import enum
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from ms_enclave import __version__

from enclaved import log
from enclaved.config import SETTINGS, ConfigError, Configuration, Setting, load
from enclaved.errors import EnclaveError

_CallableT = TypeVar("_CallableT", bound=Callable[..., Any])

_NOT_FOR_EMBEDDED = {
    "listen.tcp": "",
    "listen.http": "",
    "listen.metrics": "",
    "listen.unix_mode": "0600",
    "listen.unix_group": "",
}
"""What holds for an embedded daemon whatever the file says: it serves its parent and nobody else."""


class ExitCode(enum.IntEnum):
    """How the command ended."""

    OK = 0
    FAILED = 1
    USAGE = 2
    STATE_LOCKED = 4


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits. What goes wrong is one line on standard error."""
    try:
        enclaved.main(args=arguments, prog_name="enclaved", standalone_mode=False)
    except ConfigError as error:
        _exit(ExitCode.USAGE, *error.problems)
    except click.UsageError as error:
        hint = f" (try {error.ctx.command_path} --help)" if error.ctx is not None else ""
        _exit(ExitCode.USAGE, f"{error.format_message().rstrip('.')}{hint}")
    except click.Abort:
        _exit(ExitCode.FAILED, "interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.FAILED)
    except OSError as error:
        _exit(ExitCode.FAILED, f"{error.filename or 'the system'}: {error.strerror}")
    finally:
        _let_go_of_log()
    sys.exit(ExitCode.OK)


def _let_go_of_log() -> None:
    """Forgets what a full disk did not take of the log: the interpreter would make that the exit code."""
    if sys.stderr is not None:
        try:
            sys.stderr.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _exit(code: ExitCode, *lines: str) -> NoReturn:
    for line in lines:
        click.echo(f"enclaved: {line}", err=True)
    sys.exit(code)


def _config_option(command: _CallableT) -> _CallableT:
    text = "Configuration file; default: ENCLAVED_CONFIG, else /etc/enclaved/config.toml if it exists."
    return click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help=text)(command)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {json.dumps(inner)}" for name, inner in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def _setting_options(command: _CallableT) -> _CallableT:
    """Adds a flag for every setting."""
    for setting in reversed(SETTINGS):
        names = [setting.flag, "--metrics"] if setting.key == "listen.metrics" else [setting.flag]
        name = setting.key.replace(".", "__")
        default = setting.field.default
        text = f"{setting.description} [{default if isinstance(default, str) else _toml(default)}]"
        command = click.option(*names, name, metavar="VALUE", help=text)(command)
    return command


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="enclaved")
def enclaved() -> None:
    """Runs code that nobody has read yet in isolated containers, for programs that speak gRPC.

    \b
    Examples:
      enclaved run                                  serve on /run/enclaved/enclaved.sock
      enclaved run --listen-unix /tmp/e.sock --state-dir /tmp/e
      enclaved config show                          every setting in force, and where it came from
      enclaved config check /etc/enclaved/config.toml
      enclaved prune --dry-run                      what daemons that are gone left behind

    \b
    Exit codes:
      0  it did what was asked
      1  it failed; the last line says why
      2  the command line or the configuration is wrong
      4  another daemon uses the state directory
    """


@enclaved.command()
@_config_option
@click.option("--embedded-parent-fd", type=click.IntRange(min=0), hidden=True)
@_setting_options
def run(file: Path | None, embedded_parent_fd: int | None, **texts: str | None) -> None:
    """Runs the daemon until SIGTERM or Ctrl-C. SIGHUP has it read its configuration again.

    At the end it refuses new calls, lets those that run finish for --daemon-drain-grace-s, and removes its sandboxes. A
    second signal cuts the waiting short. Every flag is also a setting of the configuration file and an environment
    variable: --limits-cpu-max is cpu_max in [limits] and ENCLAVED_LIMITS_CPU_MAX.

    \b
    Examples:
      enclaved run --log-format text
      enclaved run --listen-tcp 127.0.0.1:50061 --limits-sandboxes-max 20
    """
    flags = {name.replace("__", "."): text for name, text in texts.items() if text is not None}
    if embedded_parent_fd is not None:
        flags = {**_NOT_FOR_EMBEDDED, **flags}
    configuration = load(file, flags=flags)
    _configure_log(configuration, for_person=sys.stderr.isatty() or embedded_parent_fd is not None)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC would write lines of its own; read when it is loaded

    from enclaved import daemon  # the other commands do without it

    try:
        daemon.run(configuration.settings, embedded_parent_fd, lambda: load(file, flags=flags).settings)
    except daemon.StateLocked as error:
        _exit(ExitCode.STATE_LOCKED, str(error))
    except daemon.StartError as error:
        _exit(ExitCode.FAILED, str(error))


@enclaved.group(no_args_is_help=False)
def config() -> None:
    """Shows and checks the configuration."""


@config.command()
@_config_option
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
        click.echo(json.dumps(shown, indent=2))
        return
    lines = [(f"{key} = {_toml(values[key])}", origin) for key, origin in origins.items()]
    width = max(len(line) for line, _ in lines)
    for line, origin in lines:
        click.echo(f"{line:{width}}  # {origin}")
    for pool in settings.pools:
        shown_pool = pool.model_dump(exclude_unset=True)
        click.echo("\n".join(["", "[[pools]]", *(f"{name} = {_toml(value)}" for name, value in shown_pool.items())]))


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
        _exit(ExitCode.USAGE, *found.settings.bad_pools)
    click.echo(f"{file or 'the configuration'}: ok")


@enclaved.command()
@_config_option
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
        _exit(ExitCode.FAILED, str(error))
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
        _exit(ExitCode.FAILED, f"{len(found.failed)} things could not be removed; see above")


def _configure_log(configuration: Configuration, *, for_person: bool) -> None:
    chosen = configuration.settings.log
    is_default = configuration.origins["log.format"] == "default"
    log.configure(chosen.level, "text" if is_default and for_person else chosen.format)
    for warning in configuration.warnings:
        logging.getLogger(__name__).warning("configuration", extra={"why": warning})
