"""The command that runs a program in a pool."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import click

from ms_enclave import _results as results
from ms_enclave._cli import exits, streams
from ms_enclave._cli.options import address_option, json_option, print_json, running_daemon
from ms_enclave._cli.programs import STDERR, STDOUT, Result, say
from ms_enclave._model import Channel, ExecutionOptions, NoticeKind, Output
from ms_enclave._transports.base import ToolCall


@click.command()
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@click.option("-c", "--code", metavar="CODE", help="Run this Python code and no command.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Kill it after so long; 0: the longest allowed.")
@click.option("--wait", type=float, metavar="SECONDS", help="How long to wait for a free sandbox. [60]")
@address_option
@json_option
@click.pass_context
def run(
    context: click.Context,
    /,
    name: str,
    command: Sequence[str],
    code: str | None,
    timeout: float | None,
    wait: float | None,
    address: str | None,
    as_json: bool,
) -> int:
    """Runs a line of Python (-c) or a command in the next free sandbox of a pool, and prints its output at its end.

    Nothing of it stays: the sandbox is reset for the next one. Its standard input is empty. Ctrl-C kills it.

    \b
    Examples:
      ms-enclave pool run py -c 'print(40 + 2)'
      ms-enclave pool run py --timeout 10 -- ls -la
      ms-enclave pool run py --json -c '1/0' | jq .verdict

    \b
    Exit codes: those of "ms-enclave run".
    """
    if (code is None) == (not command):
        raise click.UsageError("name one of -c CODE and -- COMMAND...", context)
    tool, parameters = ("command", {"command": list(command)}) if code is None else ("python_executor", {"code": code})
    call = ToolCall("", tool, parameters, timeout, options=ExecutionOptions(timeout=timeout))
    return asyncio.run(_run(name, call, wait, address, as_json=as_json))


async def _run(pool: str, call: ToolCall, wait_s: float | None, address: str | None, *, as_json: bool) -> int:
    loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ended_by: list[signal.Signals] = []
    transport = await running_daemon(address)
    work = asyncio.create_task(transport.executions.run_in_pool(pool, call, wait_s))

    def end(number: signal.Signals) -> None:
        ended_by.append(number)
        work.cancel()

    for number in numbers:
        loop.add_signal_handler(number, end, number)
    try:
        outcome = await work
    except asyncio.CancelledError:
        return exits.signal_code(ended_by[0]) if ended_by else exits.ExitCode.INTERRUPTED
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
    return await _show(pool, outcome, as_json=as_json)


async def _show(pool: str, outcome: results.Outcome, *, as_json: bool) -> int:
    result = Result("", outcome.execution_id, outcome.finished)
    for notice in outcome.notices:
        if notice.kind is NoticeKind.GAP:
            result.truncated = True
            say(notice.message)
    if as_json:
        result.keep(Output(Channel.STDOUT, 0, outcome.stdout, 0.0))
        result.keep(Output(Channel.STDERR, 0, outcome.stderr, 0.0))
        shown = result.as_json()
        del shown["sandbox_id"]  # it is the next one's by now
        print_json({**shown, "pool_id": pool})
    else:
        await streams.write(STDOUT, outcome.stdout)
        await streams.write(STDERR, outcome.stderr)
        if reason := result.reason():
            say(reason)
    return exits.of_program(outcome.finished, interrupted=False)
