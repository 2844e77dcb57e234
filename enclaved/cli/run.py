"""``enclaved run``: the daemon."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from enclaved import log
from enclaved.cli.common import CallableT, ExitCode, as_toml, config_option, leave
from enclaved.config import DEFAULT_FILE, SETTINGS, ConfigError, Configuration, Settings, load
from enclaved.config.waive import KEY as WAIVER_KEY
from enclaved.config.waive import foreign_waiver

_NOT_FOR_EMBEDDED = {
    "listen.tcp": "",
    "listen.http": "",
    "listen.http_auth": "auto",
    "listen.metrics": "",
    "tls.cert": "",
    "tls.key": "",
    "tls.behind_proxy": "false",
    "listen.unix_mode": "0600",
    "listen.unix_group": "",
}
"""What holds for an embedded daemon whatever the file says: it serves its parent and nobody else."""


def _setting_options(command: CallableT) -> CallableT:
    """Adds a flag for every setting."""
    for setting in reversed(SETTINGS):
        names = [setting.flag, "--metrics"] if setting.key == "listen.metrics" else [setting.flag]
        name = setting.key.replace(".", "__")
        default = setting.field.default
        text = f"{setting.description} [{default if isinstance(default, str) else as_toml(default)}]"
        command = click.option(*names, name, metavar="VALUE", help=text)(command)
    return command


@click.command()
@config_option
@click.option("--embedded-parent-fd", type=click.IntRange(min=0), hidden=True)
@click.option("--embedded-working-dir", default="", hidden=True)
@_setting_options
def run(file: Path | None, embedded_parent_fd: int | None, embedded_working_dir: str, **texts: str | None) -> None:
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
    if embedded_parent_fd is not None:
        names, origin = configuration.settings.waive.protections, configuration.origins[WAIVER_KEY]
        problem = foreign_waiver(names, origin, str(DEFAULT_FILE))
        if problem is not None:
            raise ConfigError([problem])
    _configure_log(configuration, for_person=sys.stderr.isatty() or embedded_parent_fd is not None)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC would write lines of its own; read when it is loaded

    from enclaved import daemon  # the other commands do without it

    def reread() -> Settings:
        return load(file, flags=flags).settings

    try:
        daemon.run(configuration.settings, embedded_parent_fd, reread, working_dir=embedded_working_dir)
    except daemon.StateLocked as error:
        leave(ExitCode.STATE_LOCKED, str(error))
    except daemon.Unprotected as error:
        leave(ExitCode.UNPROTECTED, str(error))
    except daemon.StartError as error:
        leave(ExitCode.FAILED, str(error))


def _configure_log(configuration: Configuration, *, for_person: bool) -> None:
    chosen = configuration.settings.log
    is_default = configuration.origins["log.format"] == "default"
    log.configure(chosen.level, "text" if is_default and for_person else chosen.format)
    for warning in configuration.warnings:
        logging.getLogger(__name__).warning("configuration", extra={"why": warning})
