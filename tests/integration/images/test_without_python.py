"""Images without Python: the guest brings its own interpreter, and everything works but what the image lacks."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest
from ms_enclave.errors import ImageUnusable
from ms_enclave.sandbox.boxes import Sandbox
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import ExecutionOptions, Output, SandboxType

from tests.integration.failures.ground import DaemonProcess, Ground

INTERPRETER = "/run/enclave/rt/bin/python3"
KINDS = ("empty", "node-like", "old Python")


@pytest.fixture(params=KINDS)
async def sandbox(request: pytest.FixtureRequest, images: dict[str, str], make: Callable[[str], Any]) -> Sandbox:
    found: Sandbox = await make(images[request.param])
    return found


async def python(sandbox: Sandbox, code: str, **parameters: Any) -> str:
    """The output of a call that ends well."""
    result = await sandbox.execute_tool("python_executor", {"code": code, **parameters})
    assert result.error is None, result
    return str(result.output)


async def test_python_runs_with_the_guests_interpreter_and_keeps_its_variables(sandbox: Sandbox):
    assert await python(sandbox, "import sys; answer = 42; print(sys.executable)") == f"{INTERPRETER}\n"
    assert await python(sandbox, "print(answer)") == "42\n"
    assert await python(sandbox, "print('answer' in globals())", isolated=True) == "False\n"


async def test_its_standard_library_is_whole_and_finds_its_own_libraries_only(sandbox: Sandbox):
    code = (
        "import asyncio, bz2, ctypes, curses, decimal, hashlib, lzma, readline, sqlite3, ssl, zlib\n"
        "places = {line.split()[-1] for line in open('/proc/self/maps') if '.so' in line}\n"
        "print(sorted(place for place in places if not place.startswith('/run/enclave/rt/')))\n"
        "print(sqlite3.connect(':memory:').execute('select 6 * 7').fetchone(), hashlib.sha256().name)\n"
    )
    assert await python(sandbox, code) == "[]\n(42,) sha256\n"


async def test_its_programs_can_start_more_of_it(sandbox: Sandbox):
    code = (
        "import subprocess, sys\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "import multiprocessing, operator\n"
        "print(subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True, text=True).stdout.strip())\n"
        "with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn')) as pool:\n"
        "    print(list(pool.map(operator.neg, [1, 2])))\n"
    )
    assert await python(sandbox, code, isolated=True) == "42\n[-1, -2]\n"


async def test_it_cannot_be_changed_and_programs_are_nobody_special(sandbox: Sandbox):
    code = (
        "import os\n"
        "status = open('/proc/self/status').read()\n"
        "print(os.getuid() > 0, [line.split()[1] for line in status.splitlines() if line.startswith('CapEff')])\n"
        "print(bool(os.statvfs('/run/enclave/rt').f_flag & os.ST_RDONLY))\n"
        "try:\n    open('/run/enclave/rt/bin/python3.11', 'ab')\nexcept OSError as error:\n    print(error.strerror)\n"
    )
    assert await python(sandbox, code) == "True ['0000000000000000']\nTrue\nPermission denied\n"


async def test_files_go_in_and_out(sandbox: Sandbox):
    await sandbox.put_file("data/word.txt", "hello\n")
    assert await python(sandbox, "print(open('data/word.txt').read(), end='')") == "hello\n"
    assert await sandbox.read_file("data/word.txt") == b"hello\n"


async def test_commands_that_the_image_has_run_and_others_are_not_found(sandbox: Sandbox):
    done = await sandbox.execute_command([INTERPRETER, "-c", "import os; print(os.getpid() > 1)"])
    assert (done.exit_code, done.stdout) == (0, "True\n")
    missing = await sandbox.execute_command(["no-such-command"])
    assert (missing.exit_code, missing.stderr) == (127, "no-such-command: command not found\n")


async def test_a_program_has_a_terminal_and_gets_signals(sandbox: Sandbox):
    code = "import os, time\nprint(os.isatty(0), *os.get_terminal_size(), flush=True)\ntime.sleep(600)\n"
    options = ExecutionOptions(terminal=True)
    async with await sandbox.start_execution("python_executor", code=code, isolated=True, options=options) as running:
        async for event in running:
            if isinstance(event, Output):
                assert event.text == "True 80 24\r\n"
                await running.signal(signal.SIGTERM)
        finished = await running.wait()
    assert (finished.verdict.value, finished.signal) == ("SIGNALED", signal.SIGTERM)


async def test_a_shell_that_is_not_there_is_said_not_to_be_there(images, make):
    sandbox = await make(images["empty"])
    result = await sandbox.execute_tool("shell_executor", {"command": "echo hello"})
    assert result.error is not None
    assert result.error.startswith("/bin/sh: command not found\n")


async def test_programs_of_the_image_use_the_images_own_libraries(images, make):
    sandbox = await make(images["node-like"])
    done = await sandbox.execute_command("node --version; grep -c /run/enclave/rt /proc/self/maps; env | grep -c LD_")
    assert done.stdout == "v20.11.0\n0\n0\n"


async def test_an_image_with_python_uses_its_own(default_image: str, make):
    sandbox = await make(default_image)
    assert await python(sandbox, "import os, sys; print(sys.executable, os.listdir('/run/enclave'))") == (
        "/usr/bin/python3 ['guest.py', 'socket']\n"
    )


async def test_many_sandboxes_of_one_image_can_be_made_at_once(images, make):
    made = await asyncio.gather(*(make(images["empty"]) for _ in range(4)))
    assert await asyncio.gather(*(python(sandbox, "print(1)") for sandbox in made)) == ["1\n"] * 4


async def test_without_the_interpreter_the_error_says_how_to_make_it(images, tmp_path):
    ground = Ground()
    try:
        daemon: DaemonProcess = await ground.daemon("--sandbox-guest-runtime", str(tmp_path))
        async with LocalSandboxManager(address=daemon.address) as manager:
            for kind, words in (("empty", "no python3"), ("old Python", "3.6.9")):
                with pytest.raises(ImageUnusable, match=f"{words}.*scripts/build-guest-runtime"):
                    await manager.create_sandbox(SandboxType.DOCKER, {"image": images[kind]})
        assert ground.containers() == []
        daemon.check_log()
    finally:
        ground.clear()
