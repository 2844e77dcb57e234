"""Ordinary programs run under the whole profile as they do elsewhere."""

from __future__ import annotations

import io
import zipfile

import pytest
from ms_enclave.sandbox.boxes import Sandbox

from .programs import PYTHON, SHELL


@pytest.mark.parametrize("name", PYTHON)
async def test_a_fresh_interpreter_runs(sandbox: Sandbox, name: str) -> None:
    result = await sandbox.execute_tool("python_executor", {"code": PYTHON[name].code, "isolated": True})
    assert (result.output, result.error) == (PYTHON[name].output, None)


@pytest.mark.parametrize("name", PYTHON)
async def test_an_interpreter_that_keeps_its_variables_runs(sandbox: Sandbox, name: str) -> None:
    result = await sandbox.execute_tool("python_executor", {"code": PYTHON[name].code})
    assert (result.output, result.error) == (PYTHON[name].output, None)


@pytest.mark.parametrize("name", SHELL)
async def test_a_shell_runs(sandbox: Sandbox, name: str) -> None:
    result = await sandbox.execute_tool("shell_executor", {"command": SHELL[name].code})
    assert (result.output, result.error) == (SHELL[name].output, None)


async def test_pip_installs_a_wheel_for_the_user_and_it_can_be_imported_at_once(sandbox: Sandbox) -> None:
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pure_thing.py", "def answer():\n    return 42\n")
        info = "pure_thing-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pure-thing\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"pure_thing.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    await sandbox.put_file("/sandbox/pure_thing-1.0-py3-none-any.whl", wheel.getvalue())
    command = "pip install --no-index --user --break-system-packages pure_thing-1.0-py3-none-any.whl"
    installed = await sandbox.execute_tool("shell_executor", {"command": command})
    assert installed.error is None, installed
    code = "import pure_thing; print(pure_thing.answer())"
    for isolated in (False, True):
        result = await sandbox.execute_tool("python_executor", {"code": code, "isolated": isolated})
        assert (result.output, result.error) == ("42\n", None)
