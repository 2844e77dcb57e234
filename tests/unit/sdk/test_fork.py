"""Forked processes: gRPC cannot cross a fork, so the SDK lets go of it before and takes it up after."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ms_enclave import _embedded as embedded

ROOT = Path(__file__).resolve().parents[3]
PATH = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'sdk_python')!r}]"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A fake daemon in a process of its own."""
    path = tmp_path / "enclaved.sock"
    code = f"{PATH}; import runpy; runpy.run_module('tests.unit.sdk.fake_daemon', run_name='__main__')"
    with subprocess.Popen([sys.executable, "-c", code, "--listen-unix", str(path)]) as process:
        assert embedded._wait_until_it_listens(process, tmp_path) == ""
        yield f"unix:{path}"
        process.terminate()


def run(code: str, address: str) -> str:
    environment = {**os.environ, "MS_ENCLAVE_ADDRESS": address}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{PATH}\n{code}"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=True,
    ).stdout


def test_objects_can_be_used_on_both_sides_of_a_fork(address: str) -> None:
    code = """
import asyncio, os
from ms_enclave.sandbox.boxes import SandboxFactory
sandbox = SandboxFactory.create_sandbox("docker")
asyncio.run(sandbox.start())
def use(word):
    print(asyncio.run(sandbox.execute_tool("python_executor", {"code": word})).output, flush=True)
use("before")
child = os.fork()
if child == 0:
    use("child")
    grandchild = os.fork()
    if grandchild == 0:
        use("grandchild")
        os._exit(0)
    os.waitpid(grandchild, 0)
    os._exit(0)
os.waitpid(child, 0)
use("after")
asyncio.run(sandbox.cleanup())
"""
    assert run(code, address).split() == ["before", "child", "grandchild", "after"]


def test_the_blocking_face_crosses_a_fork_as_well(address: str) -> None:
    code = """
import multiprocessing
from ms_enclave.sandbox.sync import SandboxFactory
def use(word):
    print(sandbox.execute_tool("python_executor", {"code": word}).output, flush=True)
with SandboxFactory.create_sandbox("docker") as sandbox:
    use("before")
    worker = multiprocessing.get_context("fork").Process(target=use, args=("child",))
    worker.start()
    worker.join()
    use("after")
"""
    assert run(code, address).split() == ["before", "child", "after"]


def test_a_fork_during_a_call_is_an_error_in_the_child_and_none_in_the_parent(address: str) -> None:
    code = """
import asyncio, os
from ms_enclave._transports.grpc import GrpcTransport
transport = GrpcTransport(os.environ["MS_ENCLAVE_ADDRESS"])
async def main():
    with transport._calls.call(5):  # a call is under way
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(transport.health())
            except RuntimeError as error:
                print(error, flush=True)
            os._exit(0)
    os.waitpid(child, 0)
    print((await transport.health()).version, flush=True)
asyncio.run(main())
"""
    told, version = run(code, address).splitlines()
    assert "'spawn' or 'forkserver'" in told
    assert version == "9.9"


def test_a_system_without_forks_is_a_client_and_says_so(address: str) -> None:
    code = """
import os
del os.register_at_fork, os.fork
import asyncio
from ms_enclave.sandbox.boxes import SandboxFactory
from ms_enclave._embedded import EmbeddedDaemon
async def main():
    async with SandboxFactory.create_sandbox("docker") as sandbox:
        print((await sandbox.execute_tool("python_executor", {"code": "42"})).output)
asyncio.run(main())
try:
    EmbeddedDaemon().ensure()
except RuntimeError as error:
    print(error)
"""
    answer, told = run(code, address).splitlines()
    assert answer == "42"
    assert told.startswith("this system can only be a client: ")
