"""The service on a machine that systemd runs: installed, used, reloaded, hung, drained, upgraded and removed."""

from __future__ import annotations

import pytest

from tests.systemd.machine import SERVICE, Machine, client

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

RUN = """
import asyncio
from ms_enclave.sandbox.boxes import SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType

async def main():
    config = DockerSandboxConfig(tools_config={"python_executor": {}})
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as box:
        print("there", flush=True)
        result = await box.execute_tool("python_executor", {"code": CODE})
        print(result.status.value, result.output.strip(), flush=True)

asyncio.run(main())
"""
TWICE = """
import asyncio
from ms_enclave.sandbox.boxes import SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType

async def main():
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, DockerSandboxConfig()):
        async with SandboxFactory.create_sandbox(SandboxType.DOCKER, DockerSandboxConfig()):
            pass

asyncio.run(main())
"""
LOAD = """
import asyncio, os
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import Output, SandboxType

LINES = 200
WRITE = f"import time\\nfor n in range({LINES}): print(n, flush=True); time.sleep(0.01)"

async def client(manager, number):
    rounds = 0
    kept = await manager.create_sandbox(SandboxType.DOCKER, {"memory_limit": "128m"})
    await manager.execute_tool(kept, "python_executor", {"code": "count = 0"})
    while not os.path.exists("/tmp/over"):
        rounds += 1
        box = await manager.get_sandbox(kept)
        result = await box.execute_tool("python_executor", {"code": "count += 1; print(count)"})
        assert result.output == f"{rounds}\\n", result
        got = b""
        async for event in box.stream("python_executor", {"code": WRITE, "isolated": True}):
            if isinstance(event, Output):
                got += event.data
        assert got.split() == [str(n).encode() for n in range(LINES)], got
        await box.put_file("/sandbox/file", bytes(100_000))
        assert len(await box.read_file("/sandbox/file")) == 100_000
        other = await manager.create_sandbox(SandboxType.DOCKER, {"memory_limit": "128m"})
        assert (await manager.execute_tool(other, "python_executor", {"code": "print(1)"})).output == "1\\n"
        assert await manager.delete_sandbox(other)
        assert len(await manager.list_sandboxes()) >= 1
        print("round", number, rounds, flush=True)
    assert await manager.delete_sandbox(kept)

async def main():
    async with LocalSandboxManager() as manager:
        await asyncio.gather(*(client(manager, number) for number in range(4)))
    print("no error", flush=True)

asyncio.run(main())
"""
CONFIG = "/etc/enclaved/config.toml"


def running(code: str) -> str:
    """A program that runs code in a sandbox of its own and prints how it ended."""
    return RUN.replace("CODE", repr(code))


async def works(host: Machine) -> None:
    done = await host.client(running("import os; print(6 * 7, os.getuid() >= 1_900_000_000)"))
    assert done.output.splitlines() == ["there", "success 42 True"], await host.journal()
    assert done.code == 0


async def test_the_service_is_up_when_its_installation_ends(host: Machine):
    assert (await host.show("ActiveState"), await host.show("SubState")) == ("active", "running")
    assert await host.show("Type") == "notify"
    assert await host.show("UnitFileState") == "enabled"
    assert '"event": "ready"' in await host.journal()
    assert (await host.get("/healthz")).split() == ["200", "ok"]
    assert (await host.get("/readyz")).split() == ["200", "ok"]


async def test_the_daemon_is_an_ordinary_user_without_capabilities(host: Machine):
    status = await host.ok("cat", f"/proc/{await host.show('MainPID')}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (await host.ok("id", "--user", "enclaved")).strip() in fields["Uid"].split()
    assert {fields[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


async def test_a_member_of_the_group_runs_code_in_a_sandbox(host: Machine):
    await works(host)
    assert await host.sandboxes() == []


async def test_a_stranger_cannot_reach_the_socket(host: Machine):
    done = await host.client(running("print(1)"), user="mallory")
    assert done.code != 0
    assert "there" not in done.output


async def test_a_second_installation_changes_nothing(host: Machine):
    before = await host.show("MainPID")
    output = await host.install("/wheels/old")
    assert "the service runs already, and nothing changed" in output
    assert "writing" not in output
    assert await host.show("MainPID") == before


async def test_a_reload_changes_limits_while_the_daemon_runs(host: Machine):
    before = await host.show("MainPID")
    config = f'[state]\ndir = "{host.state_dir}"\n'
    await host.write(CONFIG, f"{config}[limits]\nsandboxes_max = 1\n[listen]\nunix_mode = '0666'\n")
    await host.ok("systemctl", "reload", SERVICE)
    await host.until("StatusText", "These settings need a restart: listen.unix_mode")
    await works(host)
    done = await host.client(TWICE)
    assert "LimitReached" in done.output, done.output
    assert 'enclaved_config_reloads_total{outcome="ok"} 1.0' in await host.get("/metrics")
    await host.write(CONFIG, config)
    await host.ok("systemctl", "reload", SERVICE)
    await host.until("StatusText", "")
    assert await host.show("MainPID") == before


async def test_a_reload_of_a_faulty_file_fails_and_the_old_configuration_stays(host: Machine):
    before = await host.show("MainPID")
    good = await host.ok("cat", CONFIG)
    await host.write(CONFIG, f"{good}[limits]\ncpu_mx = 1\n")
    done = await host.run("systemctl", "reload", SERVICE)
    assert done.code != 0
    status = await host.until("StatusText", "", other_than=True)
    assert "limits.cpu_mx is no setting; did you mean limits.cpu_max?" in status
    assert "enclaved_config_last_reload_successful 0.0" in await host.get("/metrics")
    await works(host)
    await host.write(CONFIG, good)
    await host.ok("systemctl", "reload", SERVICE)
    await host.until("StatusText", "")
    assert "enclaved_config_last_reload_successful 1.0" in await host.get("/metrics")
    assert await host.show("MainPID") == before


async def test_a_daemon_that_hangs_is_restarted_and_goes_on_where_it_was(host: Machine):
    hung = await host.show("MainPID")
    code = running("import time; time.sleep(25); print('to the end')")
    async with host.running(*client(code), user="alice") as program:
        await program.said("there")
        assert len(await host.sandboxes()) == 1
        await host.ok("kill", "-STOP", hung)
        await host.until("NRestarts", "1")
        assert "success to the end" in (await program.ended()).output
    assert await host.until("MainPID", hung, other_than=True) != "0"
    await host.until("ActiveState", "active")
    journal = await host.journal()
    assert "Watchdog timeout" in journal
    assert "sandbox adopted" in journal
    await host.until_clean()
    await works(host)


async def test_a_stop_lets_running_calls_finish_and_leaves_no_sandbox(host: Machine):
    async with host.running(
        *client(running("import time; time.sleep(3); print('to the end')")), user="alice"
    ) as program:
        await program.said("there")
        await host.ok("systemctl", "stop", SERVICE)
        done = await program.ended()
    assert "success to the end" in done.output
    assert await host.sandboxes() == []
    assert await host.show("Result") == "success"
    assert (await host.run("test", "-e", "/run/enclaved/enclaved.sock")).code == 1
    await host.ok("systemctl", "start", SERVICE)
    await works(host)


async def test_an_upgrade_restarts_the_service_in_the_new_version(host: Machine):
    before = await host.show("MainPID")
    assert 'enclaved_build_info{version="1.0.0"} 1.0' in await host.get("/metrics")
    output = await host.install("/wheels/new")
    assert f"keeping {CONFIG}" in output
    assert await host.show("MainPID") != before
    assert 'enclaved_build_info{version="1.0.1"} 1.0' in await host.get("/metrics")
    await works(host)


async def test_restarts_cost_the_clients_nothing_where_sandboxes_are_kept(host: Machine):
    config = await host.ok("cat", CONFIG)
    await host.write(CONFIG, f"{config}[daemon]\nkeep_sandboxes_on_stop = true\n")
    await host.ok("systemctl", "restart", SERVICE)
    async with host.running(*client(LOAD), user="alice") as program:
        await program.said("round 0 1")
        for _ in range(3):
            before = await host.show("MainPID")
            await host.ok("systemctl", "restart", SERVICE)
            assert await host.show("MainPID") != before
            await host.until_metric("enclaved_executions_total", at_least=4)
        await host.ok("touch", "/tmp/over")
        done = await program.ended()
    assert (done.code, done.output.splitlines()[-1]) == (0, "no error"), f"{done.output}\n{await host.journal()}"
    assert "sandbox adopted" in await host.journal()
    await host.until_clean()
    await host.write(CONFIG, config)
    await host.ok("systemctl", "restart", SERVICE)
    await works(host)


async def test_what_systemd_thinks_of_the_installed_unit(host: Machine):
    done = await host.run("systemd-analyze", "verify", "--man=no", f"/etc/systemd/system/{SERVICE}")
    assert (done.code, done.output) == (0, "")
    exposure = await host.ok("systemd-analyze", "security", "--no-pager", SERVICE)
    (line,) = [line for line in exposure.splitlines() if "Overall exposure level" in line]
    assert float(line.split(":")[1].split()[0]) <= 1.5


async def test_an_uninstallation_leaves_nothing_not_even_of_a_daemon_that_was_killed(host: Machine):
    impatient = ("env", "MS_ENCLAVE_RECONNECT_S=1", *client(running("import time; time.sleep(60)")))
    async with host.running(*impatient, user="alice") as program:
        await program.said("there")
        await host.ok("systemctl", "kill", "--signal=KILL", SERVICE)
        await host.ok("systemctl", "stop", SERVICE)
        await program.ended()
    assert len(await host.sandboxes()) == 1
    await host.ok("gpasswd", "--delete", "alice", "ms-enclave")
    await host.ok("/src/scripts/install-service", "--uninstall")
    assert await host.sandboxes() == []
    assert (await host.run("systemctl", "cat", SERVICE)).code != 0
    files, accounts = host.at_first
    assert await host.accounts() == accounts
    left = {path for path in await host.files() - files if not path.startswith(f"{host.state_dir}/")}
    # The tools that manage accounts keep the files as they were before.
    assert left <= {f"/etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")}
    await host.ok("/src/scripts/install-service", "--uninstall")
