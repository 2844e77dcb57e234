"""The commands for executions: start them, follow them, leave them, come back."""

from __future__ import annotations

import asyncio
import signal as signals
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import click

from ms_enclave._cli import listing, streams
from ms_enclave._cli.exits import ExitCode, of_program
from ms_enclave._cli.options import address_option, json_option, print_json, running_daemon
from ms_enclave._cli.programs import STDIN, STDOUT, say
from ms_enclave._cli.relay import Manner, Relay
from ms_enclave._cli.terminal import size_of
from ms_enclave._model import ExecutionInfo, ExecutionOptions, Retention
from ms_enclave._transports.base import ToolCall

WAIT_S: Final = 60.0


@click.command(name="exec", context_settings={"allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Feed it standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal; with -i, ours is in its hands.")
@click.option("-d", "--detach", is_flag=True, help="Leave it running, and print its id.")
@click.option("--context", "in_context", metavar="NAME", help="It is Python code, for this context, and no command.")
@click.option(
    "--timeout",
    type=float,
    metavar="SECONDS",
    help="Kill it after so long; 0: the longest allowed. [the sandbox's; 0 with -t or -d]",
)
@address_option
@json_option
@click.argument("sandbox")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND...")
@click.pass_context
def exec_command(
    context: click.Context,
    /,
    sandbox: str,
    command: Sequence[str],
    interactive: bool,
    tty: bool,
    detach: bool,
    in_context: str | None,
    timeout: float | None,
    address: str | None,
    as_json: bool,
) -> int:
    """Runs a command in a sandbox that exists, as if it ran here.

    With -it it has our terminal: every key is for it (also Ctrl-C), and it learns when the window changes. Ctrl-P,
    Ctrl-Q leaves it running; "ms-enclave attach" goes on. Without -t Ctrl-C interrupts it, and a second one kills it.

    \b
    Examples:
      ms-enclave exec box -- ls -la
      ms-enclave exec -it box -- bash
      tar c src | ms-enclave exec -i box -- tar x
      ms-enclave exec -d box -- python3 train.py
      ms-enclave exec --context analysis box -- 'print(len(data))'

    \b
    Exit codes: those of "ms-enclave run"; 0 if it was left running.
    """
    words = list(command[1:] if command[:1] == ("--",) else command)
    if not words:
        raise click.UsageError("name a COMMAND", context)
    if detach and (interactive or tty):
        raise click.UsageError("-d excludes -i and -t", context)
    if tty and as_json:
        raise click.UsageError("-t and --json exclude each other", context)
    tool, parameters = _command(words) if in_context is None else _python(words)
    options = ExecutionOptions(
        timeout=0.0 if timeout is None and (tty or detach) else timeout,
        stdin=interactive,
        terminal=size_of(STDOUT) if tty else False,
        context=in_context,
        # One that is left with the keys goes on, and its screen is not to have holes.
        detach=tty or detach,
        retention=Retention.UNTIL_ACK if tty else None,
    )

    async def run() -> int:
        executions = (await running_daemon(address)).executions
        call = ToolCall(sandbox, tool, parameters, options=options)
        if detach:
            execution_id = (await executions.start_detached(call)).execution_id
            if as_json:
                print_json({"execution_id": execution_id, "sandbox_id": sandbox})
            else:
                click.echo(execution_id)
            return ExitCode.OK
        manner = Manner(live=not as_json, stdin=interactive, terminal=tty)
        return await _relay(Relay(executions, executions.follow(call), sandbox, manner), as_json)

    return asyncio.run(run())


@click.command()
@click.argument("execution")
@address_option
@json_option
def attach(execution: str, address: str | None, as_json: bool) -> int:
    """Goes on with an execution that runs: shows what it wrote and writes, and if it has a terminal, gives it ours.

    Ctrl-P, Ctrl-Q (with a terminal) or Ctrl-C (without) leaves it running.

    \b
    Examples:
      ms-enclave exec -d box -- bash -c 'for i in 1 2 3; do echo $i; sleep 10; done'
      ms-enclave attach 3f2a9c0d41b84d1c

    \b
    Exit codes: those of "ms-enclave run"; 0 if it was left running.
    """

    async def run() -> int:
        executions = (await running_daemon(address)).executions
        info = await executions.get(execution)
        has_terminal = info.terminal and not as_json
        manner = Manner(
            live=not as_json, stdin=has_terminal and streams.is_open(STDIN), terminal=has_terminal, owned=False
        )
        return await _relay(Relay(executions, executions.attach(execution, "", {}), info.sandbox_id, manner), as_json)

    return asyncio.run(run())


@click.command()
@click.argument("execution")
@click.option("-f", "--follow", is_flag=True, help="Wait for more, to its end.")
@address_option
@json_option
def logs(execution: str, follow: bool, address: str | None, as_json: bool) -> int:
    """Shows what an execution wrote, as far as it is kept: what nobody has read yet, and what is kept after that.

    It only looks: whoever follows the execution misses nothing. Ctrl-C ends it.

    \b
    Examples:
      ms-enclave logs 3f2a9c0d41b84d1c
      ms-enclave logs -f 3f2a9c0d41b84d1c | grep loss
    """

    async def run() -> int:
        executions = (await running_daemon(address)).executions
        info = await executions.get(execution)
        follower = executions.attach(execution, "", {}, observe=True)
        manner = Manner(live=not as_json, owned=False, to_the_end=follow or not info.running)
        relay = Relay(executions, follower, info.sandbox_id, manner)
        await relay.follow()
        if as_json:
            print_json({**relay.result.as_json(), **_open_end(relay)})
        return ExitCode.OK

    return asyncio.run(run())


@click.command()
@click.argument("sandbox", required=False, default="")
@click.option("--running", is_flag=True, help="Only those that have not ended.")
@address_option
@json_option
def executions(sandbox: str, running: bool, address: str | None, as_json: bool) -> None:
    """Lists the executions of a sandbox (of all, if none is named) that run or ended in the last minute.

    \b
    Examples:
      ms-enclave executions box
      ms-enclave executions box --json | jq -r '.[] | select(.awaiting_input).id'
    """

    async def found() -> list[ExecutionInfo]:
        transport = await running_daemon(address)
        return await transport.executions.list(sandbox, running=True if running else None)

    infos = asyncio.run(found())
    if as_json:
        print_json([execution_json(info) for info in infos])
    else:
        listing.show_executions(infos)


@click.command()
@click.argument("execution")
@click.argument("number", metavar="NUMBER|NAME")
@click.option("--leader", is_flag=True, help="Only the first of its processes.")
@address_option
@json_option
@click.pass_context
def signal(
    context: click.Context, /, execution: str, number: str, leader: bool, address: str | None, as_json: bool
) -> None:
    """Sends a signal to an execution: to all its processes, or with --leader to the first one.

    \b
    Examples:
      ms-enclave signal 3f2a9c0d41b84d1c INT
      ms-enclave signal --leader 3f2a9c0d41b84d1c 10
    """
    wanted = _signal_number(context, number)

    async def send() -> None:
        await (await running_daemon(address)).executions.signal(execution, "", wanted, leader_only=leader)

    asyncio.run(send())
    if as_json:
        print_json({"execution_id": execution, "signal": wanted})


@click.command()
@click.argument("execution")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait for so long. [for ever]")
@address_option
@json_option
def wait(execution: str, timeout: float | None, address: str | None, as_json: bool) -> int:
    """Waits for the end of an execution, and ends as it did.

    \b
    Examples:
      ms-enclave wait 3f2a9c0d41b84d1c && echo passed
      ms-enclave wait --timeout 10 --json 3f2a9c0d41b84d1c | jq .verdict

    \b
    Exit codes: those of "ms-enclave run"; 125 if it has not ended in time.
    """

    async def waited() -> ExecutionInfo:
        calls = (await running_daemon(address)).executions
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        while True:
            left_s = WAIT_S if end is None else min(WAIT_S, max(0.0, end - loop.time()))
            info = await calls.wait(execution, "", left_s)
            if not info.running or (end is not None and loop.time() >= end):
                return info

    info = asyncio.run(waited())
    if as_json:
        print_json(execution_json(info))
    elif info.finished is None:
        say(f"execution {execution} still runs")
    return ExitCode.NOT_RUN if info.finished is None else of_program(info.finished, interrupted=False)


def _command(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    return "command", {"command": words}


def _python(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    return "python_executor", {"code": " ".join(words)}


def execution_json(info: ExecutionInfo) -> dict[str, Any]:
    """Returns an execution for JSON."""
    found = asdict(info)
    found["created_at"] = info.created_at.astimezone().isoformat()
    found["running"] = info.running
    if info.finished is not None:
        found["verdict"] = info.finished.verdict.value
        found["finished"]["bytes_total"] = {channel.value: n for channel, n in info.finished.bytes_total.items()}
        found["finished"]["limits_hit"] = dict(info.finished.limits_hit)
    return found


async def _relay(relay: Relay, as_json: bool) -> int:
    exit_code = await relay.follow()
    if as_json:
        print_json({**relay.result.as_json(), **_open_end(relay)})
    elif relay.left:
        say(f"left it running; 'ms-enclave attach {relay.result.execution_id}' goes on")
    elif reason := relay.result.reason():
        say(reason)
    return exit_code


def _open_end(relay: Relay) -> dict[str, None]:
    """Returns what is not known of one that was left while it ran."""
    return {"verdict": None, "message": None} if relay.result.finished is None else {}


def _signal_number(context: click.Context, text: str) -> int:
    if text.isdecimal():
        return int(text)
    name = text.upper()
    try:
        return int(signals.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    except KeyError:
        raise click.UsageError(
            f"{text!r} is no signal; write a number from 1 to 64, or a name such as INT", context
        ) from None


COMMANDS: Final = (exec_command, attach, logs, executions, signal, wait)
