"""The command ``ms-enclave``: runs programs in sandboxes, follows them, and shows and removes sandboxes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from ms_enclave import __version__
from ms_enclave._cli import (
    execution_commands,
    exits,
    file_commands,
    lifecycle_commands,
    looking_commands,
    making_commands,
    programs,
    streams,
    wishes,
)
from ms_enclave._cli.context_commands import context
from ms_enclave._cli.exits import ExitCode
from ms_enclave._cli.options import address_option, json_option, print_json, running_daemon
from ms_enclave._cli.pool_commands import pool
from ms_enclave._cli.programs import say
from ms_enclave._cli.requests import granted_requests, request_options
from ms_enclave._cli.top import top
from ms_enclave._local import process_daemons
from ms_enclave._model import DockerSandboxConfig
from ms_enclave.errors import EnclaveError, Unavailable

RUN = "run"
LIKE_PROGRAMS = (RUN, "exec", "attach", "wait", "pool run")
"""Commands that end as a program did, so that their own failures have a code of their own."""
API_KEY_VARIABLE = "MS_ENCLAVE_API_KEY"
LOG_LEVELS = ("debug", "info", "warning", "error")
LIFE_MARGIN_S = 300
"""How much longer than its program a sandbox may live, should nobody be left to remove it."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits. What goes wrong is one line on standard error."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    failed = ExitCode.NOT_RUN if _is_like_a_program(given) else ExitCode.FAILED
    try:
        code = ms_enclave.main(args=given, prog_name="ms-enclave", standalone_mode=False)
    except click.UsageError as error:
        hint = f" (try {error.ctx.command_path} --help)" if error.ctx is not None else ""
        _exit(
            ExitCode.NOT_RUN if _is_like_a_program(given) else ExitCode.USAGE,
            f"{error.format_message().rstrip('.')}{hint}",
        )
    except (click.Abort, KeyboardInterrupt):
        _exit(ExitCode.INTERRUPTED, "interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.NOBODY_READS)
    except EnclaveError as error:
        _exit(failed, exits.one_line(error))
    except OSError as error:
        _exit(failed, f"{error.filename or 'the system'}: {error.strerror}")
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _is_like_a_program(arguments: Sequence[str]) -> bool:
    return any(" ".join(arguments[:length]) in LIKE_PROGRAMS for length in (1, 2))


def _exit(code: int, line: str) -> NoReturn:
    say(line)
    sys.exit(code)


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ms-enclave")
def ms_enclave() -> None:
    """Runs code that nobody has read yet in isolated containers.

    \b
    Examples:
      ms-enclave run script.py                run a file, with its output live
      ms-enclave run -c 'print(40 + 2)'       run a line
      sort -u words | ms-enclave run -c 'print(len(list(open(0))))'
      ms-enclave create box                   make a sandbox that stays
      ms-enclave ps                           list sandboxes
      ms-enclave exec -it box -- bash         a shell in one of them
      ms-enclave logs -f EXECUTION            watch what runs there
      ms-enclave server                       serve the HTTP API on port 8000

    \b
    Exit codes:
      0    it did what was asked
      1    it failed; the last line says why
      2    the command line is wrong
      130  interrupted
    "run", "exec", "attach", "wait" and "pool run" have those of the program; see "ms-enclave run --help".
    """


@ms_enclave.command(name=RUN)
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("-c", "--code", metavar="CODE", help="Run this instead of a file.")
@click.option("--shell", is_flag=True, help="It is a shell script, not Python.")
@click.option("--image", metavar="IMAGE", help="Image of the sandbox. [python:3.11-slim]")
@click.option("--timeout", type=float, metavar="SECONDS", help="Kill it after so long; 0: the longest allowed. [30]")
@click.option("--memory", metavar="SIZE", help="Memory of the sandbox, such as 512m or 2g.")
@click.option("--cpu", type=float, metavar="CORES", help="CPU time per wall time, such as 0.5.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable, or pass on ours. Repeatable.")
@request_options
@click.option("-i", "--interactive", is_flag=True, help="Feed it standard input although that is a terminal.")
@address_option
@json_option
@click.pass_context
def run(
    context: click.Context,
    /,
    file: Path | None,
    code: str | None,
    shell: bool,
    interactive: bool,
    address: str | None,
    as_json: bool,
    **limits: Any,
) -> int:
    """Runs a Python file, a line of code (-c) or what standard input says (-) in a sandbox of its own.

    Output appears as it is written, byte for byte. Standard input is the program's, unless it is a terminal. Ctrl-C
    interrupts the program (KeyboardInterrupt); a second Ctrl-C kills it. The sandbox is removed at the end.

    \b
    Examples:
      ms-enclave run script.py
      ms-enclave run --timeout 300 --memory 2g train.py
      ms-enclave run -c 'import sys; print(sys.stdin.read().upper())' < words.txt
      ms-enclave run --shell -c 'ls -la; df -h .' -e LANG=C
      ms-enclave run --json -c '1/0' | jq .verdict
      ms-enclave run --volume ./data:/data analyse.py

    \b
    Exit codes:
      the program's own, if it ended by itself
      1        it raised an exception
      124      it reached its timeout
      125      it did not run, or we failed; the last line says why
      128 + N  signal N killed it
      130      interrupted by Ctrl-C
      137      a limit killed it (memory, output, files, processes); the last line says which
      141      nobody read the output any more
    """
    text = _text(context, file, code)
    parameters = {"command": text} if shell else {"code": text, "isolated": True}
    from_stdin = file is not None and str(file) == "-"
    program = programs.Program(
        "shell_executor" if shell else "python_executor",
        parameters,
        _config(context, **limits),
        None if from_stdin else programs.own_stdin(from_terminal=interactive),
        address,
    )
    started = programs.Run(program, live=not as_json)
    exit_code = asyncio.run(started.to_the_end())
    if as_json and started.result.finished is not None:
        print_json(started.result.as_json())
    elif reason := started.result.reason():
        say(reason)
    return exit_code


def _text(context: click.Context, file: Path | None, code: str | None) -> str:
    if code is not None and file is None:
        return code
    if file is None or code is not None:
        raise click.UsageError("name one of FILE and -c CODE", context)
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise click.UsageError(f"{file} is not UTF-8 text", context) from None


def _config(
    context: click.Context,
    *,
    image: str | None,
    timeout: float | None,
    memory: str | None,
    cpu: float | None,
    env: Sequence[str],
    **requests: Any,
) -> DockerSandboxConfig:
    wanted = {
        "image": image,
        "timeout": timeout,
        "memory_limit": memory,
        "cpu_limit": cpu,
        "env_vars": wishes.variables(env),
        **granted_requests(context, **requests),
    }
    asked: dict[str, Any] = {name: value for name, value in wanted.items() if value not in (None, {})}
    if timeout:
        asked["resource_limits"] = {"ttl": timeout + LIFE_MARGIN_S}
    return wishes.config(context, asked)


@ms_enclave.command()
@click.argument("ids", nargs=-1, metavar="ID...")
@click.option("--all", "everything", is_flag=True, help="Remove every sandbox of the daemon.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before removing all.")
@click.option(
    "--no-wait", is_flag=True, help="Return when it is certain that they go, and not only when they are gone."
)
@address_option
@json_option
@click.pass_context
def rm(
    context: click.Context,
    /,
    ids: Sequence[str],
    everything: bool,
    yes: bool,
    no_wait: bool,
    address: str | None,
    as_json: bool,
) -> int:
    """Removes sandboxes with everything in them, killing what runs there. Prints the id of each.

    \b
    Examples:
      ms-enclave rm box-1 box-2
      ms-enclave rm --all
    """
    if bool(ids) == everything:
        raise click.UsageError("name one of ID... and --all", context)
    if everything and not yes and streams.is_terminal(0):
        click.confirm("Remove every sandbox of the daemon?", abort=True, err=True)
    return asyncio.run(_remove(list(dict.fromkeys(ids)), address, as_json, wait=not no_wait))


async def _remove(ids: Sequence[str], address: str | None, as_json: bool, *, wait: bool) -> int:
    transport = await running_daemon(address)
    wanted = ids or [info.id for info in await transport.list_sandboxes({})]
    removed, failures = [], {}
    for sandbox_id in wanted:
        try:
            await transport.delete_sandbox(sandbox_id, wait=wait)
        except Unavailable:
            raise  # the others would fail as well, each after a while
        except EnclaveError as error:
            failures[sandbox_id] = exits.one_line(error)
            say(failures[sandbox_id])
        else:
            removed.append(sandbox_id)
            if not as_json:
                click.echo(sandbox_id)
    if as_json:
        print_json({"removed": removed, "failed": failures})
    return ExitCode.FAILED if failures else ExitCode.OK


@ms_enclave.command()
@click.argument("image", required=False, default="")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@address_option
@json_option
def pull(image: str, quiet: bool, address: str | None, as_json: bool) -> None:
    """Makes sure that the engine has an image (the default one if none is named), and prints its id there.

    \b
    Examples:
      ms-enclave pull
      ms-enclave pull python:3.12-slim
    """
    from ms_enclave._cli import images  # the bars take a while to load, and the other commands have none

    async def pulled() -> str:
        transport = await process_daemons().connect(address)
        return await images.follow(transport.pull_image(image), quiet=quiet)

    image_id = asyncio.run(pulled())
    if as_json:
        print_json({"image": image or None, "image_id": image_id})
    else:
        click.echo(image_id)


@ms_enclave.command()
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Address to listen on. [127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, metavar="PORT", help="Port to listen on. [8000]")
@click.option(
    "--api-key-file",
    type=click.File(),
    metavar="FILE",
    help=f"File with the key that every request must carry. Default: {API_KEY_VARIABLE}, else none.",
)
@click.option("--pool-size", type=click.IntRange(0, 100), default=0, metavar="N", help="Sandboxes to keep ready. [0]")
@click.option("--ssl-certfile", metavar="FILE", help="Certificate and its chain (PEM).")
@click.option("--ssl-keyfile", metavar="FILE", help="Private key of the certificate (PEM).")
@click.option("--behind-proxy", is_flag=True, help="A proxy before it ends TLS.")
@click.option("--log-level", type=click.Choice(LOG_LEVELS), default="warning", help="What to log. [warning]")
def server(
    host: str,
    port: int,
    api_key_file: TextIO | None,
    pool_size: int,
    ssl_certfile: str | None,
    ssl_keyfile: str | None,
    behind_proxy: bool,
    log_level: str,
) -> None:
    """Serves the HTTP API until Ctrl-C or SIGTERM, with a daemon of its own; then removes all its sandboxes.

    Anything but a loopback address needs a key, which clients send in the header X-API-Key, and a certificate or a
    proxy that has one. The key is never an argument, since every user of a machine sees those.

    \b
    Examples:
      ms-enclave server
      ms-enclave server --host 0.0.0.0 --api-key-file key.txt --ssl-certfile tls.crt --ssl-keyfile tls.key
      curl http://127.0.0.1:8000/health
    """
    from ms_enclave.sandbox.server.server import create_server  # which the other commands do without

    key = api_key_file.read().strip() if api_key_file is not None else os.environ.get(API_KEY_VARIABLE)
    create_server(api_key=key or None, pool_size=pool_size).run(
        host,
        port,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        behind_proxy=behind_proxy,
        log_level=log_level,
    )


@ms_enclave.command()
@address_option
@json_option
def version(address: str | None, as_json: bool) -> None:
    """Prints our version, and that of the daemon if one runs.

    \b
    Example:
      ms-enclave version --json | jq -r .daemon.version
    """

    async def daemon() -> dict[str, Any] | None:
        try:
            transport = await running_daemon(address)
            found = await transport.health(timeout_s=2.0)
        except (Unavailable, TimeoutError):
            return None
        return {"address": transport.address, "version": found.version, "healthy": found.healthy}

    found = asyncio.run(daemon())
    if as_json:
        print_json({"version": __version__, "daemon": found})
        return
    click.echo(f"ms-enclave {__version__}")
    click.echo("daemon: none runs" if found is None else f"daemon {found['version']} at {found['address']}")


for _command in (
    *execution_commands.COMMANDS,
    *file_commands.COMMANDS,
    *lifecycle_commands.COMMANDS,
    *looking_commands.COMMANDS,
    *making_commands.COMMANDS,
    context,
    pool,
    top,
):
    ms_enclave.add_command(_command)


if __name__ == "__main__":
    main()
