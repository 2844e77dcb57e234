"""What the documented options of tools promise, whatever transport carries them.

Subclass `ToolOptionsContract` and give it a ``transport`` fixture. The daemon behind it is real, and so is the guest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from ms_enclave._transports.base import SandboxPlan, ToolCall, Transport
from ms_enclave.sandbox.model import (
    DockerSandboxConfig,
    ExecutionStatus,
    FileOperationConfig,
    PythonExecutorConfig,
    ShellExecutorConfig,
    ToolResult,
)

Run = Callable[..., Awaitable[ToolResult]]


class ToolOptionsContract:
    """The promises, one test each."""

    @pytest.fixture
    async def run(self, transport: Transport) -> AsyncIterator[Run]:
        """Runs one tool in a sandbox that has it with these options, and nothing else."""
        made = set()

        async def run(tool: str, options: Any, **parameters: Any) -> ToolResult:
            if "box" not in made:
                config = DockerSandboxConfig(tools_config={tool: options})
                await transport.create_sandbox(SandboxPlan("box", config, config.tools_config, {}))
                made.add("box")
            return await transport.run(ToolCall("box", tool, parameters))

        yield run
        for sandbox_id in made:
            await transport.delete_sandbox(sandbox_id)

    async def test_a_program_imports_what_it_may_and_its_libraries_what_they_need(self, run: Run) -> None:
        options = PythonExecutorConfig(allowed_modules=["json", "datetime", "xml.etree", "concurrent"])
        code = (
            "from __future__ import annotations\n"
            "import json, datetime, concurrent.futures\n"
            "from xml.etree import ElementTree\n"
            "print(json.loads('1'), datetime.datetime.strptime('2001', '%Y').year, ElementTree.__name__)\n"
        )
        result = await run("python_executor", options, code=code)
        assert (result.status, result.output) == (ExecutionStatus.SUCCESS, "1 2001 xml.etree.ElementTree\n")
        assert (await run("python_executor", options, code="print(json.dumps(2))")).output == "2\n"

    @pytest.mark.parametrize(
        ("code", "named"),
        [
            ("import os", "os"),
            ("import os.path as p", "os.path"),
            ("from os import getcwd", "os"),
            ("def f():\n    import sys\nf()", "sys"),
            ("__import__('subprocess')", "subprocess"),
            ("import xml", "xml"),
            ("exec('import socket', {})", "socket"),
        ],
    )
    @pytest.mark.parametrize("isolated", [False, True])
    async def test_a_program_imports_nothing_else(self, run: Run, code: str, named: str, isolated: bool) -> None:
        options = {"allowed_modules": ["json", "xml.etree"]}
        result = await run("python_executor", options, code=code, isolated=isolated)
        assert result.status is ExecutionStatus.ERROR
        text = f"ImportError: importing '{named}' is not allowed here (allowed_modules: json, xml.etree)\n"
        assert result.error is not None
        assert result.error.endswith(text)
        assert "guest" not in result.error

    async def test_blocked_modules_are_not_imported_and_others_are(self, run: Run) -> None:
        options = PythonExecutorConfig(blocked_modules=["subprocess", "os.path"])
        code = (
            "import importlib, os, tempfile\n"
            "for name in ('subprocess', 'os.path'):\n"
            "    try: importlib.import_module(name)\n"
            "    except ImportError as error: print(error)\n"
            "try: from os import path\n"
            "except ImportError as error: print(error)\n"
        )
        result = await run("python_executor", options, code=code)
        refused = ["subprocess", "os.path", "os.path"]
        assert result.output == "".join(
            f"importing '{each}' is not allowed here (blocked_modules)\n" for each in refused
        )

    async def test_modules_of_the_program_itself_are_bound_as_it_is(self, run: Run) -> None:
        options = {"allowed_modules": ["mine", "pathlib"]}
        writes = "import pathlib\npathlib.Path('mine.py').write_text('def f():\\n    import socket\\n')\n"
        result = await run("python_executor", options, code=writes + "import mine\nmine.f()\n")
        assert result.error is not None
        assert 'mine.py", line 2, in f' in result.error
        assert result.error.endswith("importing 'socket' is not allowed here (allowed_modules: mine, pathlib)\n")

    async def test_output_beyond_the_limit_ends_the_execution(self, run: Run) -> None:
        options = PythonExecutorConfig(max_output_size=1000)
        result = await run("python_executor", options, code="print('x' * 5000)")
        assert (result.status, result.metadata["verdict"]) == (ExecutionStatus.ERROR, "OUTPUT_LIMIT")
        assert len(result.output or "") <= 1000
        assert (await run("python_executor", options, code="print('x' * 900)")).success

    async def test_a_shell_runs_what_it_may(self, run: Run) -> None:
        options = ShellExecutorConfig(allowed_commands=["echo", "tr"], shell_path="/bin/sh")
        result = await run("shell_executor", options, command="echo $0 | tr s S")
        assert (result.status, result.output) == (ExecutionStatus.SUCCESS, "/bin/Sh\n")
        result = await run("shell_executor", options, command="echo a; uname")
        assert (result.status, result.output) == (ExecutionStatus.ERROR, "")
        assert result.error == "Command not allowed: uname (allowed_commands: echo, tr)"
        result = await run("command", options, command=["uname"])
        assert result.error == "Command not allowed: uname (allowed_commands: echo, tr)"

    async def test_the_file_tool_stays_on_its_paths_wherever_links_lead(self, run: Run, transport: Transport) -> None:
        options = FileOperationConfig(allowed_paths=["data", "one/file.txt"], blocked_paths=["data/secret"])

        async def do(operation: str, path: str, **more: str) -> ToolResult:
            return await run("file_operation", options, operation=operation, file_path=path, **more)

        assert (await do("write", "data/a.txt", content="hello")).success
        where = await transport.run(ToolCall("box", "command", {"command": "pwd"}))
        absolute = await do("read", f"{(where.output or '').strip()}/data/a.txt")
        assert (absolute.output, absolute.error) == ("hello", None)
        assert (await do("write", "one/file.txt", content="x")).success  # a file can be named as well
        links = "mkdir data/secret; ln -s ../elsewhere data/out; ln -s secret data/in; echo x > elsewhere"
        made = await transport.run(ToolCall("box", "command", {"command": links}))
        assert made.success
        for path in ("b.txt", "data/../b.txt", "data/out", "one/b", "one", "database/x", "/etc/passwd"):
            refused = await do("read", path)
            assert refused.status is ExecutionStatus.ERROR
        assert "is not allowed (allowed_paths)" in ((await do("read", "data/out")).error or "")
        for path in ("data/secret", "data/secret/x", "data/in/x", "data/other/../secret"):
            refused = await do("write", path, content="x")
            assert "is not allowed (blocked_paths)" in (refused.error or "")
        assert "what is not allowed lies in it" in ((await do("delete", "data")).error or "")
        assert (await do("delete", "data/a.txt")).success

    async def test_the_file_tool_keeps_to_sizes_and_extensions(self, run: Run, transport: Transport) -> None:
        options = FileOperationConfig(max_file_size=10, allowed_extensions=[".txt"])

        async def do(operation: str, path: str, **more: str) -> ToolResult:
            return await run("file_operation", options, operation=operation, file_path=path, **more)

        assert (await do("write", "a.txt", content="x" * 10)).success
        refused = await do("write", "a.txt", content="x" * 11)
        assert refused.error == "File too large: 11 bytes, and at most 10 are allowed (max_file_size)"
        refused = await do("write", "a.py", content="x")
        assert refused.error == "File extension not allowed: a.py (allowed_extensions: .txt)"
        assert (await transport.run(ToolCall("box", "command", {"command": "echo 0123456789 > a.txt"}))).success
        refused = await do("read", "a.txt")
        assert "the file has 11 bytes, and at most 10 are allowed (max_file_size)" in (refused.error or "")
