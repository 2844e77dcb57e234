"""``Sandbox.execute_tool`` with the tools of the daemon: parameters, outputs and the texts that users parse."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from ms_enclave.errors import InvalidRequest, ToolNotFound
from ms_enclave.sandbox.boxes import Sandbox, SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, ExecutionStatus, SandboxType, ToolResult
from ms_enclave.sandbox.tools import PythonExecutor, ShellExecutor


class TestPythonExecutor:
    async def test_it_keeps_variables_between_calls(self, sandbox: Sandbox):
        await python(sandbox, "kept = [1, 2]\ndef total():\n    return sum(kept)")
        assert (await python(sandbox, "kept.append(3)\nprint(total())")).output == "6\n"

    async def test_an_isolated_call_shares_no_variables(self, sandbox: Sandbox):
        await python(sandbox, "secret = 1")
        result = await sandbox.execute_tool(
            "python_executor", {"code": "print('secret' in globals()); mine = 1", "isolated": True}
        )
        assert result.output == "False\n"
        assert (await python(sandbox, "print(secret, 'mine' in globals())")).output == "1 False\n"

    async def test_it_behaves_as_a_script(self, sandbox: Sandbox):
        result = await python(sandbox, "40 + 2\nprint(__name__)")
        assert result.output == "__main__\n"

    async def test_a_syntax_error_is_shown_as_the_interpreter_shows_it(self, sandbox: Sandbox):
        result = await python(sandbox, 'print("Missing quote')
        assert (result.status, result.output) == (ExecutionStatus.ERROR, "")
        first, source, _, last = error(result).splitlines()
        assert first.startswith('  File "<call ')
        assert source == '    print("Missing quote'
        assert last == "SyntaxError: unterminated string literal (detected at line 1)"

    async def test_a_traceback_has_the_users_lines_and_none_of_ours(self, sandbox: Sandbox):
        result = await python(sandbox, "def halve(x):\n    return x / 0\nprint('before')\nhalve(1)")
        assert result.output == "before\n"
        shown = error(result)
        assert shown.startswith("Traceback (most recent call last):\n")
        assert "    return x / 0\n" in shown
        assert shown.endswith("ZeroDivisionError: division by zero\n")
        assert shown.count("File ") == 2
        assert result.metadata["verdict"] == "EXCEPTION"

    @pytest.mark.parametrize(("code", "status"), [(0, "success"), (3, "error"), (124, "error"), (137, "error")])
    async def test_sys_exit_is_an_exit_code(self, sandbox: Sandbox, code: int, status: str):
        result = await python(sandbox, f"import sys\nsys.exit({code})")
        assert (result.status, result.metadata["exit_code"]) == (status, code)
        assert result.error == (f"Command failed with exit code {code}" if code else None)

    async def test_a_crash_is_a_signal_and_the_next_call_has_a_fresh_interpreter(self, sandbox: Sandbox):
        await python(sandbox, "lost = 1")
        crash = await python(sandbox, "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
        assert (crash.metadata["verdict"], crash.metadata["signal"]) == ("SIGNALED", 11)
        assert error(crash).startswith("Command failed with exit code 139")
        after = await python(sandbox, "print('lost' in globals())")
        assert after.output == "False\n"
        assert after.metadata["notices"]

    async def test_a_timeout_interrupts_and_variables_survive(self, sandbox: Sandbox):
        await python(sandbox, "survivor = 'here'")
        result = await python(sandbox, "print('begun', flush=True)\nwhile True: pass", timeout=0.5)
        assert (result.status, result.output) == (ExecutionStatus.TIMEOUT, "begun\n")
        assert result.error == "Command timed out after 0.5 seconds"
        assert result.metadata["state_preserved"] is True
        assert (await python(sandbox, "print(survivor)")).output == "here\n"

    async def test_a_program_that_wants_too_much_memory_is_told_so(self, sandbox: Sandbox):
        result = await sandbox.execute_tool("python_executor", {"code": "bytearray(10**9)", "isolated": True})
        assert (result.status, result.metadata["verdict"]) == (ExecutionStatus.ERROR, "OUT_OF_MEMORY")
        assert "memory limit" in error(result)
        assert (await python(sandbox, "print('alive')")).output == "alive\n"

    async def test_input_finds_the_end_of_file(self, sandbox: Sandbox):
        assert error(await python(sandbox, "input()")).endswith("EOFError: EOF when reading a line\n")

    async def test_programs_of_several_processes_work(self, sandbox: Sandbox):
        code = "from multiprocessing import Pool\nwith Pool(2) as pool:\n    print(pool.map(abs, [-1, -2]))"
        assert (await python(sandbox, code)).output == "[1, 2]\n"

    @pytest.mark.parametrize("code", ["", " \n\t"])
    async def test_no_code_is_a_failed_result(self, sandbox: Sandbox, code: str):
        result = await python(sandbox, code)
        assert (result.status, result.error, result.output) == (ExecutionStatus.ERROR, "No code provided", "")


class TestShellExecutor:
    async def test_output_is_standard_output(self, sandbox: Sandbox):
        result = await sandbox.execute_tool("shell_executor", {"command": "echo hello"})
        assert (result.tool_name, result.output, result.error) == ("shell_executor", "hello\n", None)

    async def test_bash_is_the_same_tool_by_the_name_that_the_caller_used(self, sandbox: Sandbox):
        result = await sandbox.execute_tool("bash", {"command": ["echo", "$HOME"]})
        assert (result.tool_name, result.output) == ("bash", "$HOME\n")
        assert sandbox.get_tool("bash") is sandbox.get_tool("shell_executor")

    async def test_a_failure_says_the_exit_code(self, sandbox: Sandbox):
        result = await sandbox.execute_tool("shell_executor", {"command": "exit 3"})
        assert (result.status, result.error) == (ExecutionStatus.ERROR, "Command failed with exit code 3")

    async def test_what_a_failed_command_says_comes_first(self, sandbox: Sandbox):
        result = await sandbox.execute_tool("shell_executor", {"command": "echo broken >&2; exit 3"})
        assert result.error == "broken\nCommand failed with exit code 3"

    async def test_a_timeout_says_the_seconds(self, sandbox: Sandbox):
        result = await sandbox.execute_tool("shell_executor", {"command": "sleep 60", "timeout": 1})
        assert (result.status, result.error) == (ExecutionStatus.TIMEOUT, "Command timed out after 1 seconds")

    async def test_no_command_is_a_failed_result(self, sandbox: Sandbox):
        result = await sandbox.execute_tool("shell_executor", {"command": " "})
        assert (result.status, result.error) == (ExecutionStatus.ERROR, "No command provided")


class TestFileOperation:
    async def test_a_file_from_its_beginning_to_its_end(self, sandbox: Sandbox):
        path = "reports/today.txt"
        assert (await file(sandbox, "exists", path)).output == "does not exist"
        assert (await file(sandbox, "write", path, content="çà et là\n")).output == f"File written successfully: {path}"
        assert (await file(sandbox, "exists", path)).output == "exists"
        assert (await file(sandbox, "read", path)).output == "çà et là\n"
        assert "today.txt" in (await file(sandbox, "list", "reports")).output
        assert (await file(sandbox, "delete", path)).output == f"Successfully deleted: {path}"
        assert (await file(sandbox, "exists", path)).output == "does not exist"

    async def test_create_makes_an_empty_file(self, sandbox: Sandbox):
        await file(sandbox, "create", "empty.txt")
        result = await file(sandbox, "read", "empty.txt")
        assert (result.success, result.output) == (True, "")

    @pytest.mark.parametrize("name", ['it\'s "odd" $(touch x) `ls`.txt', "-rf", "näme with 空格.txt", "a\nb"])
    async def test_quotes_and_odd_names_are_safe(self, sandbox: Sandbox, name: str):
        await file(sandbox, "write", name, content=name)
        assert (await file(sandbox, "read", name)).output == name
        assert (await python(sandbox, f"import os\nprint({name!r} in os.listdir())")).output == "True\n"

    async def test_text_in_another_encoding(self, sandbox: Sandbox):
        await file(sandbox, "write", "latin.txt", content="é", encoding="latin-1")
        assert (await python(sandbox, "print(open('latin.txt', 'rb').read())")).output == "b'\\xe9'\n"
        assert (await file(sandbox, "read", "latin.txt", encoding="latin-1")).output == "é"

    async def test_a_file_that_does_not_exist(self, sandbox: Sandbox):
        result = await file(sandbox, "read", "missing.txt")
        assert (result.status, result.output) == (ExecutionStatus.ERROR, "")
        assert error(result).startswith("missing.txt: No such file or directory")

    @pytest.mark.parametrize("operation", ["read", "write", "delete", "list"])
    @pytest.mark.parametrize("path", ["/etc/passwd", "../etc/passwd", "/proc/1/environ"])
    async def test_a_path_outside_is_refused(self, sandbox: Sandbox, operation: str, path: str):
        result = await file(sandbox, operation, path, **({"content": "x"} if operation == "write" else {}))
        assert result.status == ExecutionStatus.ERROR
        assert "outside the sandbox's directories" in error(result)

    async def test_well_formed_nonsense_is_a_failed_result(self, sandbox: Sandbox):
        assert (await file(sandbox, "nope", "x")).error == "Unknown operation: nope"
        assert (await file(sandbox, "write", "x")).error == "Content is required for write operation"


class TestResults:
    async def test_a_result_says_everything_about_a_success(self, sandbox: Sandbox):
        before = datetime.now()
        result = await python(sandbox, "print('out')")
        assert isinstance(result, ToolResult)
        assert (result.tool_name, result.status, result.success) == ("python_executor", ExecutionStatus.SUCCESS, True)
        assert (result.output, result.error) == ("out\n", None)
        assert result.execution_time is not None
        assert result.execution_time > 0
        assert before <= result.timestamp <= datetime.now()

    async def test_standard_error_is_shown_also_on_success(self, sandbox: Sandbox):
        result = await python(sandbox, "import sys\nprint('fine')\nprint('careful', file=sys.stderr)")
        assert (result.success, result.output, result.error) == (True, "fine\n", "careful\n")

    async def test_metadata_has_the_documented_keys(self, sandbox: Sandbox):
        result = await sandbox.execute_tool("bash", {"command": "echo err >&2; exit 2"})
        documented = {"verdict", "exit_code", "signal", "stderr", "truncated", "execution_id", "phases"}
        assert documented <= result.metadata.keys()
        assert {key: result.metadata[key] for key in ("verdict", "exit_code", "signal", "stderr", "truncated")} == {
            "verdict": "EXITED",
            "exit_code": 2,
            "signal": None,
            "stderr": "err\n",
            "truncated": False,
        }

    async def test_metadata_has_the_same_keys_where_nothing_ran(self, sandbox: Sandbox):
        ran, refused = await python(sandbox, "pass"), await python(sandbox, "")
        documented = {"verdict", "exit_code", "signal", "stderr", "truncated", "execution_id", "phases"}
        assert documented <= refused.metadata.keys() <= ran.metadata.keys()

    async def test_a_result_can_be_dumped_and_read_again(self, sandbox: Sandbox):
        result = await python(sandbox, "print(1)")
        assert ToolResult.model_validate_json(result.model_dump_json()) == result


class TestWrongCalls:
    async def test_an_unknown_tool_is_a_value_error_that_names_the_others(self, sandbox: Sandbox):
        with pytest.raises(ValueError, match=r"nope is not available .* available: file_operation, python_executor"):
            await sandbox.execute_tool("nope", {})

    @pytest.mark.parametrize(
        ("parameters", "field"),
        [
            ({}, "code"),
            ({"code": 1}, "code"),
            ({"code": "1", "cod": "2"}, "cod"),
            ({"code": "1", "timeout": "soon"}, "timeout"),
            ({"code": "1", "timeout": -1}, "timeout"),
            ({"code": "1", "timeout": 1e99}, "timeout"),
            ({"code": "1", "isolated": "yes"}, "isolated"),
        ],
    )
    async def test_a_wrong_parameter_is_named(self, sandbox: Sandbox, parameters: dict[str, Any], field: str):
        with pytest.raises(InvalidRequest, match=rf"parameters\.{field}: ") as caught:
            await sandbox.execute_tool("python_executor", parameters)
        assert [violation.field for violation in caught.value.violations] == [f"parameters.{field}"]

    @pytest.mark.parametrize(
        "code", ["print('\ud800')", "#" * 50_000_000], ids=["half of a character", "50 MB of code"]
    )
    async def test_what_cannot_be_sent_is_refused_and_the_sandbox_goes_on(self, sandbox: Sandbox, code: str):
        with pytest.raises(InvalidRequest):
            await python(sandbox, code)
        assert (await python(sandbox, "print('on')")).output == "on\n"


class TestToolsOfASandbox:
    async def test_schemas_are_those_of_function_calling(self, sandbox: Sandbox):
        tools = sandbox.get_available_tools()
        assert list(tools) == sandbox.list_tools() == ["file_operation", "python_executor", "shell_executor"]
        function = tools["python_executor"]["function"]
        assert (tools["python_executor"]["type"], function["name"]) == ("function", "python_executor")
        assert function["parameters"]["required"] == ["code"]
        assert function["parameters"]["properties"]["timeout"]["default"] == 30
        assert isinstance(sandbox.get_tool("python_executor"), PythonExecutor)
        assert isinstance(sandbox.get_tool("bash"), ShellExecutor)
        assert sandbox.get_tool("nope") is None

    async def test_no_tools_means_none(self, made: Callable[..., Sandbox]):
        async with made(tools_config={}) as sandbox:
            assert sandbox.get_available_tools() == {}
            with pytest.raises(ToolNotFound, match="available: none"):
                await python(sandbox, "1")
            assert (await sandbox.execute_command("echo commands always work")).success

    async def test_only_the_named_tools_are_enabled(self, made: Callable[..., Sandbox]):
        async with made(tools_config=["python_executor"]) as sandbox:
            assert sandbox.list_tools() == ["python_executor"]
            with pytest.raises(ToolNotFound, match="available: python_executor"):
                await sandbox.execute_tool("bash", {"command": "true"})

    @pytest.mark.parametrize("name", ["bash", "shell_executor"])
    async def test_an_alias_is_enabled_with_its_tool(self, made: Callable[..., Sandbox], name: str):
        async with made(tools_config={name: {}}) as sandbox:
            assert sandbox.list_tools() == ["shell_executor"]
            assert [(await sandbox.execute_tool(tool, {"command": "echo x"})).output for tool in ("bash", name)] == [
                "x\n",
                "x\n",
            ]

    async def test_the_timeout_is_that_of_the_call_else_the_tool_else_the_sandbox(self, made: Callable[..., Sandbox]):
        tools = {"python_executor": {"timeout": 0.3}, "shell_executor": {}}
        async with made(tools_config=tools, timeout=0.6) as sandbox:
            loop = "while True: pass"
            of_the_call = await python(sandbox, loop, timeout=0.1)
            of_the_tool = await python(sandbox, loop)
            of_the_sandbox = await sandbox.execute_tool("bash", {"command": "sleep 60"})
            ends = [result.error for result in (of_the_call, of_the_tool, of_the_sandbox)]
            assert ends == [f"Command timed out after {seconds} seconds" for seconds in (0.1, 0.3, 0.6)]

    async def test_a_tool_that_no_one_knows_is_refused_when_the_sandbox_is_made(self, made: Callable[..., Sandbox]):
        with pytest.raises(InvalidRequest, match="no tool is called 'nope'"):
            await made(tools_config=["nope"]).start()


@pytest.fixture
def made() -> Callable[..., Sandbox]:
    """Makes a sandbox with these settings; nothing is started."""

    def make(**settings: Any) -> Sandbox:
        config = DockerSandboxConfig(**{"memory_limit": "128m", **settings})
        return SandboxFactory.create_sandbox(SandboxType.DOCKER, config)

    return make


async def python(sandbox: Sandbox, code: str, **parameters: Any) -> ToolResult:
    return await sandbox.execute_tool("python_executor", {"code": code, **parameters})


async def file(sandbox: Sandbox, operation: str, path: str, **parameters: Any) -> ToolResult:
    return await sandbox.execute_tool("file_operation", {"operation": operation, "file_path": path, **parameters})


def error(result: ToolResult) -> str:
    assert result.error is not None
    return result.error
