"""Sandboxes with a kernel of their own: real gVisor, as a runtime class of the operator."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiodocker
import pytest
from ms_enclave.errors import EnclaveError
from ms_enclave.sandbox.boxes import Sandbox, SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType
from ms_enclave.v1 import system_service_pb2 as system_pb

from tests.conftest import DEFAULT_IMAGE
from tests.docs.pages import blocks
from tests.integration.compatibility.programs import PYTHON, SHELL
from tests.integration.failures.test_killed_daemons import at

from .conftest import Site

STATUS = "grep -E '^(Uid|CapEff|CapPrm|Seccomp):' /proc/self/status | tr -d '\\t '"


def sandbox_of(**config: Any) -> Sandbox:
    return SandboxFactory.create_sandbox(SandboxType.DOCKER, DockerSandboxConfig(image=DEFAULT_IMAGE, **config))


@pytest.fixture(scope="module", autouse=True)
def _daemon(site: Site) -> Iterator[None]:
    """The SDK uses the site's daemon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MS_ENCLAVE_ADDRESS", site.daemon.address)
        yield


@pytest.fixture(scope="module")
def shared(_daemon: None) -> Iterator[Sandbox]:
    """One sandbox for many programs."""
    made = sandbox_of(runtime_class="gvisor")
    asyncio.run(made.start())
    yield made
    asyncio.run(made.cleanup())


@pytest.fixture
async def sandbox(_daemon: None) -> AsyncIterator[Sandbox]:
    async with sandbox_of(runtime_class="gvisor") as made:
        yield made


async def shell(sandbox: Sandbox, command: str, **parameters: Any) -> str:
    result = await sandbox.execute_tool("shell_executor", {"command": command, **parameters})
    assert result.error is None, result
    return str(result.output)


@pytest.mark.parametrize("name", PYTHON)
async def test_ordinary_python_runs(shared: Sandbox, name: str) -> None:
    result = await shared.execute_tool("python_executor", {"code": PYTHON[name].code, "isolated": True})
    assert (result.output, result.error) == (PYTHON[name].output, None)


@pytest.mark.parametrize("name", SHELL)
async def test_ordinary_commands_run(shared: Sandbox, name: str) -> None:
    result = await shared.execute_tool("shell_executor", {"command": SHELL[name].code})
    assert (result.output, result.error) == (SHELL[name].output, None)


async def test_variables_live_from_call_to_call_and_a_timeout_interrupts(shared: Sandbox) -> None:
    await shared.execute_tool("python_executor", {"code": "kept = 6 * 7"})
    late = await shared.execute_tool("python_executor", {"code": "while True: pass", "timeout": 1})
    assert late.metadata["verdict"] == "TIMEOUT"
    found = await shared.execute_tool("python_executor", {"code": "print(kept)"})
    assert found.output == "42\n"


async def test_files_travel_both_ways(shared: Sandbox) -> None:
    content = bytes(range(256)) * 4096
    await shared.put_file("/sandbox/bytes", content)
    assert await shared.read_file("/sandbox/bytes") == content


async def test_programs_see_another_kernel_than_the_hosts_and_the_engine_runs_it_with_the_other_runtime(
    site: Site, sandbox: Sandbox
) -> None:
    assert (await shell(sandbox, "uname -r")).strip() != os.uname().release
    async with aiodocker.Docker(site.engine.url) as docker:
        found = [await container.show() for container in await docker.containers.list()]
    (mine,) = [each for each in found if each["Name"].startswith(f"/enclaved-{sandbox.id}-")]
    assert mine["HostConfig"]["Runtime"] == "runsc"


async def test_programs_have_a_user_of_their_own_without_capabilities_behind_the_filter(sandbox: Sandbox) -> None:
    lines = (await shell(sandbox, STATUS)).split()
    uid = lines.pop(0).removeprefix("Uid:")
    assert lines == ["CapPrm:0000000000000000", "CapEff:0000000000000000", "Seccomp:2"]
    assert uid[:4] == "1900"
    denied = "import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.ptrace(0, 0, 0, 0), ctypes.get_errno())"
    result = await sandbox.execute_tool("python_executor", {"code": denied})
    assert result.output == "-1 1\n"


async def test_the_root_is_read_only_and_the_working_directory_is_as_large_as_it_says(sandbox: Sandbox) -> None:
    assert await shell(sandbox, "touch /usr/x 2>/dev/null || echo refused") == "refused\n"
    code = (
        "import errno, os\nsizes = []\n"
        "for name in 'ab':\n"
        "    try:\n"
        "        with open(name, 'wb', 0) as file:\n"
        "            for _ in range(100): file.write(bytes(1 << 20))\n"
        "    except OSError as error: print(errno.errorcode[error.errno])\n"
        "    sizes.append(os.stat(name).st_size)\n"
        "print(sum(sizes) <= 128 << 20)"
    )
    result = await sandbox.execute_tool("python_executor", {"code": code})
    assert result.output == "ENOSPC\nTrue\n"


async def test_programs_can_write_to_nothing_that_the_guest_holds_nor_reach_the_daemon(sandbox: Sandbox) -> None:
    code = (
        "import os, socket\n"
        "written = []\n"
        "for number in range(1, 64):\n"
        "    try:\n"
        "        fd = os.open(f'/proc/1/fd/{number}', os.O_RDWR | os.O_NONBLOCK)\n"
        "        os.write(fd, b'x')\n"
        "        written.append(number)\n"
        "    except OSError: pass\n"
        "print(written)\n"
        "for path in ('/proc/1/mem', '/run/enclave/socket/x', '/run/enclave/guest.py'):\n"
        "    try: open(path, 'wb+')\n"
        "    except OSError as error: print('refused')\n"
        "try: socket.socket(socket.AF_UNIX).connect('/run/enclave/socket/agent.sock')\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    result = await sandbox.execute_tool("python_executor", {"code": code})
    assert result.output == "[]\nrefused\nrefused\nrefused\nPermissionError\n"
    assert await shell(sandbox, "kill -STOP 1 2>/dev/null || echo refused") == "refused\n"


async def test_there_is_no_network(sandbox: Sandbox) -> None:
    code = (
        "import socket\nprint([name for _, name in socket.if_nameindex()])\n"
        "try: socket.create_connection(('192.0.2.1', 80), 3)\nexcept OSError as error: print('refused')"
    )
    result = await sandbox.execute_tool("python_executor", {"code": code})
    assert result.output == "['lo']\nrefused\n"


async def test_what_takes_all_memory_ends_as_a_lost_sandbox_and_no_other_notices(shared: Sandbox) -> None:
    async with sandbox_of(runtime_class="gvisor", memory_limit="128m") as greedy:
        code = "data = []\nwhile True: data.append(bytearray(1 << 22))"
        result = await greedy.execute_tool("python_executor", {"code": code, "timeout": 60})
        assert result.metadata["verdict"] in ("SANDBOX_LOST", "SIGNALED", "OUT_OF_MEMORY", "EXCEPTION")
    assert await shell(shared, "echo on") == "on\n"


async def test_a_fork_bomb_ends_with_its_sandbox_and_no_other_notices(shared: Sandbox) -> None:
    async with sandbox_of(runtime_class="tight", resource_limits={"pids_limit": 32}) as bomb:
        command = "b() { b | b & }; b; while :; do :; done"
        result = await bomb.execute_tool("shell_executor", {"command": command, "timeout": 10})
        assert result.metadata["verdict"] in ("SANDBOX_LOST", "TIMEOUT")
    assert await shell(shared, "echo on") == "on\n"


async def test_the_example_of_the_page_prints_what_the_page_says(site: Site) -> None:
    (example,) = blocks("docs/runtimes.md", "python")
    done = await asyncio.create_subprocess_exec(sys.executable, "-c", example.text, stdout=asyncio.subprocess.PIPE)
    said, _ = await done.communicate()
    assert (said.decode(), done.returncode) == (example.shown_output, 0)


async def test_a_sandbox_is_taken_up_by_the_next_daemon_and_keeps_its_limits(site: Site, sandbox: Sandbox) -> None:
    await shell(sandbox, "echo kept > file")
    await site.next_daemon()
    assert await shell(sandbox, "cat file") == "kept\n"
    with pytest.raises(EnclaveError, match="the runtime of the class 'gvisor' may have no way to do that"):
        await sandbox.update(memory_limit="256m")
    async with aiodocker.Docker(site.engine.url) as docker:
        (mine,) = [each for each in await docker.containers.list() if f"enclaved-{sandbox.id}-" in each["Names"][0]]
        found = await docker.containers.container(mine.id).show()
    assert found["HostConfig"]["PidsLimit"] == 256 + 4096
    assert "not isolated as it was made" not in site.daemon.text
    assert await shell(sandbox, "cat file") == "kept\n"


async def test_a_sandbox_of_the_engines_own_runtime_lives_beside_it(shared: Sandbox) -> None:
    async with sandbox_of() as other:
        assert (await shell(other, "uname -r")).strip() == os.uname().release
    async with sandbox_of(runtime_class="runc") as other:
        assert (await shell(other, "uname -r")).strip() == os.uname().release


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"network_enabled": True}, "no network"),
        (
            {"runtime_class": "unknown"},
            "no runtime class is called 'unknown'; available: runc, gvisor, tight, elsewhere",
        ),
        ({"runtime_class": "elsewhere"}, "no runtime 'runtime-that-is-not-there'"),
    ],
    ids=["a network", "a class that nobody configured", "a class whose runtime the engine lacks"],
)
async def test_what_cannot_be_is_refused_with_a_sentence(config: dict[str, Any], words: str) -> None:
    with pytest.raises(EnclaveError, match=words):
        await sandbox_of(**{"runtime_class": "gvisor", **config}).start()


async def test_the_daemon_says_which_classes_it_has(site: Site) -> None:
    async with at(site.daemon) as stubs:
        found = await stubs.system.GetInfo(system_pb.GetInfoRequest())
    assert list(found.runtime_classes) == ["runc", "gvisor", "tight", "elsewhere"]
