"""The command line itself, at a daemon made of dictionaries: help, mistakes, tables, colours, pulls."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import grpc.aio
import pytest
from click.testing import CliRunner
from ms_enclave import cli
from ms_enclave.v1 import image_service_pb2 as image_pb
from ms_enclave.v1 import image_service_pb2_grpc as image_grpc
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from tests.unit.sdk.fake_daemon import FakeDaemon, served

PATIENCE_S = 60.0
IMAGE_ID = "sha256:" + "a" * 64
PULL = [
    image_pb.PullImageResponse(status="Pulling from library/python"),
    image_pb.PullImageResponse(layer="abc123", status="Downloading", current_bytes=10, total_bytes=100),
    image_pb.PullImageResponse(layer="abc123", status="Downloading", current_bytes=90, total_bytes=100),
    image_pb.PullImageResponse(layer="abc123", status="Pull complete"),
    image_pb.PullImageResponse(image_id=IMAGE_ID),
]


class Images(image_grpc.ImageServiceServicer):
    """Pulls one image."""

    async def PullImage(self, request: Any, context: Any) -> None:  # noqa: N802 (named by the contract)
        for message in PULL:
            await context.write(message)


@contextmanager
def serving(add: Callable[[grpc.aio.Server], None], path: Path) -> Iterator[None]:
    """Serves on a thread with an event loop of its own."""
    ready, stop = threading.Event(), []

    async def main() -> None:
        loop, ending = asyncio.get_running_loop(), asyncio.Event()
        stop.append(lambda: loop.call_soon_threadsafe(ending.set))
        server = grpc.aio.server()
        add(server)
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        ready.set()
        await ending.wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(PATIENCE_S)
    try:
        yield
    finally:
        stop[0]()
        thread.join(PATIENCE_S)


def run(*arguments: str, terminal: bool = False, **variables: str) -> tuple[int, str, str]:
    """Runs the command; with ``terminal`` its output goes to one, and comes back as if it were all standard output."""
    command = [sys.executable, "-P", "-m", "ms_enclave.cli", *arguments]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", **variables}
    if not terminal:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 65536):
                said += piece
        except OSError:
            pass  # Linux says so when the last one at the other end is gone
        os.close(ours)
    return process.returncode, said.decode(), ""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A daemon with two sandboxes."""
    daemon, path = FakeDaemon(), tmp_path / "d.sock"
    for name, state in (("one", sandbox_pb.Sandbox.STATE_RUNNING), ("two", sandbox_pb.Sandbox.STATE_ERROR)):
        made = sandbox_pb.Sandbox(id=name, state=state, state_reason="[red]died" if name == "two" else "")
        made.create_time.GetCurrentTime()
        daemon.sandboxes[name] = made
    change = sandbox_pb.StateChange(state=made.state, reason="[red]died", cause=sandbox_pb.StateChange.CAUSE_ENGINE)
    change.time.GetCurrentTime()
    daemon.history.append(change)
    kinds = sandbox_pb.WatchSandboxesResponse
    news = kinds(kind=kinds.KIND_CHANGED, revision=18, sandbox=made, cause=change.cause, time=change.time, matches=True)
    daemon.changes.append([kinds(kind=kinds.KIND_BOOKMARK, revision=17), news])
    with served(daemon, path):
        yield f"unix:{path}"


def test_every_command_explains_itself_with_an_example() -> None:
    for name, command in cli.ms_enclave.commands.items():
        shown = CliRunner().invoke(cli.ms_enclave, [name, "--help"]).output
        assert f"ms-enclave {name}" in shown, name
        assert "Example" in shown, name
        assert all(option.help for option in command.params if isinstance(option, click.Option)), name


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["nonsense"], 2, "No such command 'nonsense' (try ms-enclave --help)"),
        (["rm"], 2, "name one of ID... and --all (try ms-enclave rm --help)"),
        (["rm", "--all", "x"], 2, "name one of ID... and --all (try ms-enclave rm --help)"),
        (["ps", "--nonsense"], 2, None),
        (
            ["ps", "--address", "nonsense"],
            1,
            "address: 'nonsense' is no address; write unix:/path/to/socket, host:port or https://host:port",
        ),
        (["ps", "--label", "team"], 2, "--label team: write KEY=VALUE (try ms-enclave ps --help)"),
        (
            ["ps", "--older", "1e300"],
            2,
            "--older and --younger: so long ago there was nothing (try ms-enclave ps --help)",
        ),
        (["update", "x"], 2, None),
        (["run"], 125, "name one of FILE and -c CODE (try ms-enclave run --help)"),
        (["run", "--nonsense"], 125, None),
        (["run", "--cpu", "-1", "-c", "1"], 125, "--cpu: CPU limit must be positive (try ms-enclave run --help)"),
        (["run", "-c", "1", "--timeout", "-1"], 125, None),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], exit_code: int, said: str | None) -> None:
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (exit_code, "", 1)
    assert err.startswith("ms-enclave: ")
    assert said is None or err == f"ms-enclave: {said}\n"


def test_what_a_daemon_says_is_no_markup(address: str) -> None:
    code, out, _ = run("ps", "--address", address)
    assert code == 0
    assert "two  error ([red]died)" in out


def test_one_is_shown_with_its_history(address: str) -> None:
    code, out, _ = run("inspect", "two", "--address", address)
    assert code == 0
    assert "status: error\n" in out
    assert out.splitlines()[-1].split()[1:] == ["error", "engine", "[red]died"]
    found = json.loads(run("inspect", "two", "--json", "--address", address)[1])
    assert [(one["status"], one["cause"], one["reason"]) for one in found["history"]] == [
        ("error", "engine", "[red]died")
    ]
    assert run("inspect", "nobody", "--address", address)[0] == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_changes_are_printed_as_they_come_until_ctrl_c(address: str, as_json: bool) -> None:
    command = [sys.executable, "-P", "-m", "ms_enclave.cli", "watch", "--address", address, *(["--json"] * as_json)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if as_json:
            assert json.loads(process.stdout.readline()) == {"kind": "bookmark", "revision": 17}
            found = json.loads(process.stdout.readline())
            assert (found["kind"], found["revision"], found["cause"], found["matches"]) == (
                "changed",
                18,
                "engine",
                True,
            )
            assert found["sandbox"]["id"] == "two"
        else:
            revision, _, *words = process.stdout.readline().split()
            assert (revision, words) == ("18", ["changed", "two", "error", "engine", "[red]died"])
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130


@pytest.mark.parametrize(("variables", "colored"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_there_are_colours_on_a_terminal_unless_no_color_is_set(
    address: str, variables: dict[str, str], colored: bool
) -> None:
    code, shown, _ = run("ps", "--address", address, terminal=True, **variables)
    assert code == 0
    assert ("\x1b[32mrunning" in shown) is colored
    assert "running" in shown


def test_a_pull_is_lines_where_nobody_looks_and_bars_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "i.sock"
    at = ("--address", f"unix:{path}")
    with serving(lambda server: image_grpc.add_ImageServiceServicer_to_server(Images(), server), path):
        code, out, err = run("pull", "python:3.12-slim", *at)
        assert (code, out) == (0, f"{IMAGE_ID}\n")
        assert err.splitlines() == ["Pulling from library/python", "abc123: Downloading", "abc123: Pull complete"]
        assert run("pull", "--quiet", *at) == (0, f"{IMAGE_ID}\n", "")
        assert json.loads(run("pull", "--json", "--quiet", *at)[1]) == {"image": None, "image_id": IMAGE_ID}
        code, shown, _ = run("pull", *at, terminal=True)
        assert code == 0
        assert "abc123" in shown
        assert "━" in shown
