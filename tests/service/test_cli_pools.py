"""Pools from the shell and from Python, at a real daemon whose sandboxes are processes of this machine."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ms_enclave import errors
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import PoolClaim, PoolOptions

from enclaved.config.pools import PoolSettings
from tests.service.daemons import daemon, settings_in, short_directory
from tests.service.test_cli_executions import PATIENCE_S, Command


@pytest.fixture
async def command() -> AsyncIterator[Command]:
    """The command, at a daemon with the operator's pool "ops"."""
    async with short_directory() as folder:
        ops = PoolSettings(id="ops", size=1, preload=["json"])
        settings = settings_in(folder).model_copy(update={"pools": (ops,)})
        async with daemon(settings) as running, asyncio.timeout(PATIENCE_S * 3):
            yield Command(f"unix:{running.settings.listen.unix}")


async def all_idle(command: Command, pool: str) -> Any:
    while True:
        found = await command.json("pool", "show", pool)
        if found["idle"] == found["size"]:
            return found


async def test_a_pool_is_made_shown_resized_and_deleted(command: Command) -> None:
    made = await command.run("pool", "init", "py", "--size", "1", "--max-age", "600")
    (member,) = made.out.split()
    assert (made.code, made.err) == (0, "")
    shown = await all_idle(command, "py")
    assert [(each["slot"], each["sandbox_id"], each["state"]) for each in shown["members"]] == [(0, member, "idle")]
    assert (shown["options"]["member_age_max_s"], shown["origin"]) == (600.0, "caller")
    assert member in (await command.run("pool", "show", "py")).out
    resized = await command.json("pool", "resize", "py", "2")
    assert resized["size"] == 2
    listed = (await command.run("pool", "list")).out.splitlines()
    assert [line.split()[:2] for line in listed] == [["ID", "SIZE"], ["ops", "1"], ["py", "2"]]
    assert (await command.run("pool", "delete", "py")).out == "py\n"
    gone = await command.run("pool", "show", "py")
    assert (gone.code, gone.err) == (1, "ms-enclave: pool 'py' not found; initialize it first\n")


async def test_what_makes_no_sense_is_said_in_one_line(command: Command) -> None:
    missing = await command.run("pool", "init", "py", "--size", "1", "--preload", "no_such_module")
    assert missing.code == 1
    assert "cannot import 'no_such_module'" in missing.err
    assert missing.err.count("\n") == 1
    for arguments in (
        ("claim", "ops", "--label", "x"),
        ("claim", "ops", "--memory", "much"),
        ("init", "p", "--size", "0"),
    ):
        assert (await command.run("pool", *arguments)).code == 2


async def test_a_sandbox_is_claimed_from_the_shell_and_the_lease_tells_of_it(command: Command) -> None:
    await all_idle(command, "ops")
    claimed = await command.run("pool", "claim", "ops", "--ttl", "600", "--label", "job=17")
    assert claimed.code == 0
    sandbox = claimed.out.strip()
    (found,) = [each for each in await command.json("ps") if each["id"] == sandbox]
    assert found["labels"] == {"job": "17"}
    assert (await command.run("exec", sandbox, "--", "echo", "mine")).out == "mine\n"
    (lease,) = await command.json("pool", "leases", "ops")
    assert (lease["kind"], lease["outcome"], lease["sandbox_id"]) == ("claim", "claimed", sandbox)
    assert "claimed" in (await command.run("pool", "leases", "ops")).out


async def test_a_manager_claims_what_is_warm_and_removes_it_at_its_end(command: Command) -> None:
    async with LocalSandboxManager(address=command.address) as manager:
        with pytest.raises(ValueError, match="initialize_pool"):
            await manager.claim()
        (member,) = await manager.initialize_pool(1, options=PoolOptions(preload=("csv",)))
        code = "import sys; print('csv' in sys.modules)"
        assert (await manager.execute_tool_in_pool("python_executor", {"code": code})).output == "True\n"
        box = await manager.claim(PoolClaim(labels={"mine": "1"}), timeout=PATIENCE_S)
        assert box.id == member
        assert (await box.execute_tool("python_executor", {"code": code})).output == "True\n"
        stats = await manager.pool_stats()
        assert (stats.counters["runs"], stats.counters["claims"], stats.size) == (1, 1, 1)
        ops = await manager.execute_tool_in_pool("python_executor", {"code": "print(1)"}, pool_id="ops")
        assert ops.output == "1\n"
        with pytest.raises(errors.PolicyDenied):
            await manager.claim(PoolClaim(memory_limit_bytes=2**45), pool_id="ops", timeout=PATIENCE_S)
    left = {each["id"] for each in await command.json("ps")}
    assert box.id not in left
    assert len(left) == 1


async def test_a_program_runs_in_a_pool_as_if_it_ran_here(command: Command) -> None:
    code = "import sys; print('json' in sys.modules, file=sys.stderr); print(42); raise SystemExit(3)"
    done = await command.run("pool", "run", "ops", "-c", code)
    assert (done.code, done.out, done.err) == (3, "42\n", "True\n")
    done = await command.run("pool", "run", "ops", "--", "sh", "-c", "echo out; echo no >&2; exit 4")
    assert (done.code, done.out, done.err) == (4, "out\n", "no\n")
    done = await command.run("pool", "run", "ops", "--timeout", "0.3", "--", "sleep", "60")
    assert (done.code, done.out, done.err) == (124, "", "ms-enclave: Command timed out after 0.3 seconds\n")
    raised = await command.run("pool", "run", "ops", "--json", "-c", "1/0")
    found = json.loads(raised.out)
    assert (raised.code, raised.err, found["verdict"], found["pool_id"]) == (1, "", "EXCEPTION", "ops")
    assert found["stderr"].endswith("ZeroDivisionError: division by zero\n")


async def test_what_did_not_run_in_a_pool_says_so_by_its_exit_code(command: Command) -> None:
    for arguments in (("nobody", "-c", "1"), ("ops",), ("ops", "-c", "1", "--", "ls"), ("ops", "-c", "")):
        done = await command.run("pool", "run", *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (125, "", 1), arguments


async def test_ctrl_c_kills_what_runs_in_a_pool(command: Command) -> None:
    await all_idle(command, "ops")
    process = await command.start("pool", "run", "ops", "--", "sleep", "600")
    while not await command.json("executions", "--running"):
        pass
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(PATIENCE_S):
        assert (await process.communicate(), process.returncode) == ((b"", b""), 130)
    await all_idle(command, "ops")
    assert await command.json("executions", "--running") == []
