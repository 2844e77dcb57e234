"""The command ``enclaved``: runs the daemon, shows its configuration, and clears up after it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click
from ms_enclave import __version__

from enclaved.cli.common import ExitCode, leave
from enclaved.cli.configuration import config
from enclaved.cli.doctor import doctor
from enclaved.cli.policy import policy
from enclaved.cli.prepare import prepare
from enclaved.cli.prune import prune
from enclaved.cli.run import run
from enclaved.cli.tokens import token
from enclaved.config import ConfigError

__all__ = ["ExitCode", "enclaved", "main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits. What goes wrong is one line on standard error."""
    try:
        enclaved.main(args=arguments, prog_name="enclaved", standalone_mode=False)
    except ConfigError as error:
        leave(ExitCode.USAGE, *error.problems)
    except click.UsageError as error:
        hint = f" (try {error.ctx.command_path} --help)" if error.ctx is not None else ""
        leave(ExitCode.USAGE, f"{error.format_message().rstrip('.')}{hint}")
    except click.Abort:
        leave(ExitCode.FAILED, "interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.FAILED)
    except OSError as error:
        leave(ExitCode.FAILED, f"{error.filename or 'the system'}: {error.strerror}")
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
      enclaved policy check my-policy.toml          who may ask for what, and whether that makes sense
      enclaved prune --dry-run                      what daemons that are gone left behind
      enclaved doctor                               what of this host to mend for sandboxes
      enclaved token create ci                      a token for somebody who calls from another machine

    \b
    Exit codes:
      0  it did what was asked
      1  it failed; the last line says why
      2  the command line or the configuration is wrong
      4  another daemon uses the state directory
      5  sandboxes would not be isolated here; the last line names the protections that do not work
    """


for _command in (prepare, run, config, policy, prune, token, doctor):
    enclaved.add_command(_command)
