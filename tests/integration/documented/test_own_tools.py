"""Tools that users write: classes in their own process that work against a sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ms_enclave.errors import InvalidRequest, ToolNotFound
from ms_enclave.sandbox.boxes import Sandbox, SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, ExecutionStatus, SandboxType, ToolResult
from ms_enclave.sandbox.tools import PythonExecutor, Tool, ToolFactory, register_tool


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    with monkeypatch.context() as patch:
        patch.setattr(ToolFactory, "_tools", dict(ToolFactory._tools))
        yield


class WordCount(Tool):
    """Counts the words of a file in the sandbox."""

    def __init__(self, *, separator: str | None = None, **options: Any) -> None:
        path = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
        super().__init__(name="word_count", description="Counts words", parameters=path, **options)
        self._separator = separator

    async def execute(self, sandbox: Sandbox, /, path: str) -> int:
        code = f"print(len(open({path!r}).read().split({self._separator!r})))"
        counted = await sandbox.execute_tool("python_executor", {"code": code, "isolated": True})
        return int(counted.output)


async def test_an_added_tool_runs_in_this_process_against_the_sandbox(sandbox: Sandbox):
    sandbox.add_tool(WordCount())
    await sandbox.put_file("words.txt", "one two three")
    result = await sandbox.execute_tool("word_count", {"path": "words.txt"})
    assert isinstance(result, ToolResult)
    assert (result.tool_name, result.status, result.output) == ("word_count", ExecutionStatus.SUCCESS, 3)
    schema = sandbox.get_available_tools()["word_count"]
    assert schema["function"]["description"] == "Counts words"
    assert schema["function"]["parameters"]["required"] == ["path"]
    with pytest.raises(ValueError, match="already added"):
        sandbox.add_tool(WordCount())


async def test_a_registered_tool_is_enabled_by_name_with_its_options():
    register_tool("word_count")(WordCount)
    assert "word_count" in ToolFactory.get_available_tools()
    config = DockerSandboxConfig(
        memory_limit="128m", tools_config={"python_executor": {}, "word_count": {"separator": ","}}
    )
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as sandbox:
        assert sorted(sandbox.list_tools()) == ["python_executor", "word_count"]
        await sandbox.put_file("words.txt", "a b,c d")
        assert (await sandbox.execute_tool("word_count", {"path": "words.txt"})).output == 2


async def test_the_answer_of_a_tool_may_be_a_result(sandbox: Sandbox):
    class Refuses(Tool):
        async def execute(self, sandbox: Sandbox, /) -> ToolResult:
            return ToolResult(tool_name="x", status=ExecutionStatus.ERROR, error="not today")

    sandbox.add_tool(Refuses(name="refuses"))
    result = await sandbox.execute_tool("refuses")
    assert (result.tool_name, result.success, result.error) == ("refuses", False, "not today")


async def test_what_a_tool_raises_reaches_its_caller(sandbox: Sandbox):
    class Broken(Tool):
        async def execute(self, sandbox: Sandbox, /) -> None:
            raise LookupError("a bug of the user's own")

    sandbox.add_tool(Broken(name="broken"))
    with pytest.raises(LookupError, match="a bug of the user's own"):
        await sandbox.execute_tool("broken")


async def test_tools_that_cannot_work_are_refused_when_they_are_added(sandbox: Sandbox):
    class NotebooksOnly(WordCount):
        @property
        def required_sandbox_types(self) -> list[SandboxType]:
            return [SandboxType.DOCKER_NOTEBOOK]

    with pytest.raises(InvalidRequest, match="not enabled"):
        sandbox.add_tool(WordCount(enabled=False))
    with pytest.raises(InvalidRequest, match="requires a sandbox of type docker_notebook, and this one is docker"):
        sandbox.add_tool(NotebooksOnly())


def test_the_factory_makes_tools_by_name():
    tool = ToolFactory.create_tool("python_executor", timeout=5)
    assert isinstance(tool, PythonExecutor)
    assert (tool.name, tool.enabled, tool.timeout) == ("python_executor", True, 5)
    assert tool.schema["function"]["name"] == "python_executor"
    assert {"python_executor", "shell_executor", "file_operation"} <= set(ToolFactory.get_available_tools())


def test_an_unknown_name_is_a_value_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="registered are file_operation, python_executor") as caught:
        ToolFactory.create_tool("nope")
    assert isinstance(caught.value, ToolNotFound)
