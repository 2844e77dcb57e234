"""``ms-enclave create``, ``stop``, ``start``, ``ps``, ``rm`` and ``version``."""

from __future__ import annotations

import asyncio

from ms_enclave import __version__
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import SandboxType

from tests.integration.cli.conftest import Command
from tests.integration.failures.ground import DaemonProcess


def make(daemon: DaemonProcess, *ids: str) -> None:
    """Makes sandboxes that nobody but the command removes."""

    async def made() -> None:
        manager = LocalSandboxManager(address=daemon.address)
        for sandbox_id in ids:
            await manager.create_sandbox(SandboxType.DOCKER, {"memory_limit": "128m"}, sandbox_id)

    asyncio.run(made())


def test_sandboxes_are_listed_and_removed(command: Command, daemon: DaemonProcess) -> None:
    make(daemon, "cli-1", "cli-2", "cli-3")
    found = command.json("ps")
    assert [one["id"] for one in found] == ["cli-1", "cli-2", "cli-3"]
    assert {(one["status"], one["memory_limit"], one["active_executions"]) for one in found} == {("running", "128m", 0)}
    table = command.run("ps").stdout.decode()
    assert "\x1b" not in table
    header, *rows = table.splitlines()
    assert header.split() == ["ID", "STATUS", "IMAGE", "MEMORY", "CPU", "RUNS", "CREATED"]
    assert [row.split()[:4] for row in rows] == [[one["id"], "running", one["image"], "128m"] for one in found]

    done = command.run("rm", "cli-2", "nobody", "cli-1")
    assert (done.returncode, done.stdout) == (1, b"cli-2\ncli-1\n")
    assert done.stderr.startswith(b"ms-enclave: ")
    assert b"nobody" in done.stderr
    assert done.stderr.endswith(b"('ms-enclave ps' lists those there are)\n")
    assert command.json("rm", "--all") == {"removed": ["cli-3"], "failed": {}}
    assert command.json("ps") == []


def test_the_version_is_ours_and_that_of_the_daemon(command: Command, daemon: DaemonProcess) -> None:
    own = {"address": daemon.address, "version": __version__, "healthy": True}
    assert command.json("version") == {"version": __version__, "daemon": own}
    shown = command.run("version", "--address", "127.0.0.1:1").stdout.decode()
    assert shown == f"ms-enclave {__version__}\ndaemon: none runs\n"


def test_a_daemon_that_does_not_answer_is_one_line(command: Command) -> None:
    done = command.run("ps", "--address", "127.0.0.1:1")
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert done.stderr.startswith(b"ms-enclave: no daemon answers at 127.0.0.1:1")


def test_an_image_that_the_engine_has_is_not_pulled_again(command: Command, default_image: str) -> None:
    found = command.json("pull", default_image)
    assert found["image"] == default_image
    assert found["image_id"].startswith("sha256:")
    assert command.run("pull", "--quiet").stdout.decode().startswith("sha256:")
    done = command.run("pull", "Not An Image")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.splitlines()[-1].startswith(b"ms-enclave: ")


def test_one_that_was_created_outlives_the_command_and_a_stop_keeps_its_files(command: Command) -> None:
    ways = ("--memory", "128m", "--label", "job=17", "--env", "NAME=a b", "--keep", "--request-id", "cli-job-17")
    for _ in range(2):
        made = command.run("create", "made", *ways)
        assert (made.returncode, made.stdout, made.stderr) == (0, b"made\n", b"")
    (found,) = command.json("ps")
    assert (found["id"], found["status"], found["memory_limit"]) == ("made", "running", "128m")
    assert found["labels"] == {"job": "17"}
    assert command.run("exec", "made", "--", "sh", "-c", 'echo "$NAME" > kept').returncode == 0
    assert command.run("stop", "made").stdout == b"made\n"
    assert command.json("ps")[0]["status"] == "stopped"
    assert command.run("start", "made").stdout == b"made\n"
    assert command.run("exec", "made", "--", "cat", "kept").stdout == b"a b\n"
    assert command.run("rm", "made").stdout == b"made\n"
    again = command.run("create", "made", *ways)
    assert (again.returncode, again.stdout, again.stderr.count(b"\n")) == (1, b"", 1)


def test_a_sandbox_without_a_name_gets_one(command: Command) -> None:
    made = command.run("create", "--memory", "128m", "--ttl", "600")
    (found,) = command.json("ps")
    assert (made.returncode, made.stdout.decode()) == (0, found["id"] + "\n")
    assert found["expires_at"]
    assert command.run("rm", found["id"]).returncode == 0
