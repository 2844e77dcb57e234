"""The tools that a process knows by name."""

from __future__ import annotations

from typing import Any

import pytest
from ms_enclave import errors
from ms_enclave.sandbox.boxes import Sandbox
from ms_enclave.sandbox.model import SandboxType
from ms_enclave.sandbox.tools import FileOperation, PythonExecutor, ShellExecutor, Tool, ToolFactory, register_tool
from pydantic import BaseModel


class Echo(Tool):
    async def execute(self, sandbox: Sandbox, /, **parameters: Any) -> Any:
        return parameters


class Word(BaseModel):
    word: str


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that forgets what a test registers."""
    monkeypatch.setattr(ToolFactory, "_tools", dict(ToolFactory._tools))


def test_the_documented_tools_are_known() -> None:
    assert ToolFactory.get_available_tools() == ["file_operation", "python_executor", "shell_executor"]
    for kind, name in (
        (PythonExecutor, "python_executor"),
        (ShellExecutor, "shell_executor"),
        (FileOperation, "file_operation"),
    ):
        tool = ToolFactory.create_tool(name)
        assert type(tool) is kind
        assert tool.name == name
        assert tool.description
        assert tool.enabled
        assert tool.required_sandbox_types == [SandboxType.DOCKER]


@pytest.mark.parametrize(
    ("name", "required", "known"),
    [
        ("python_executor", ["code"], {"code", "timeout", "isolated"}),
        ("shell_executor", ["command"], {"command", "timeout"}),
        ("file_operation", ["operation", "file_path"], {"operation", "file_path", "content", "encoding"}),
    ],
)
def test_schemas_are_in_the_form_of_function_calling(name: str, required: list[str], known: set[str]) -> None:
    schema = ToolFactory.create_tool(name).schema
    assert schema["type"] == "function"
    assert schema["function"]["name"] == name
    parameters = schema["function"]["parameters"]
    assert (parameters["type"], parameters["required"], set(parameters["properties"])) == ("object", required, known)
    assert parameters["additionalProperties"] is False


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="unknown_tool is not registered; registered are file_operation, python"):
        ToolFactory.create_tool("unknown_tool")
    with pytest.raises(errors.ToolNotFound):
        ToolFactory.create_tool("unknown_tool")


def test_a_registered_class_is_made_by_name_with_its_options(registry: None) -> None:
    assert register_tool("echo")(Echo) is Echo
    tool = ToolFactory.create_tool("echo", timeout=5, description="d", loud=True)
    assert (tool.name, tool.description, tool.timeout, tool.options) == ("echo", "d", 5, {"loud": True})


def test_a_class_that_is_not_registered_is_called_by_its_own_name() -> None:
    class Whisper(Echo):
        registered_name = None

    assert Whisper().name == "Whisper"
    assert Whisper(name="hush").name == "hush"


def test_parameters_are_a_schema_or_a_model() -> None:
    expected = Word.model_json_schema()
    assert Echo(parameters=Word).parameters == expected
    assert Echo(parameters=Word(word="x")).parameters == {"word": "x"}
    assert Echo(parameters={"type": "object"}).parameters == {"type": "object"}
    assert Echo().parameters == {"type": "object", "properties": {}}


def test_what_works_in_docker_works_in_a_notebook() -> None:
    tool = ToolFactory.create_tool("python_executor")
    assert tool.is_compatible_with_sandbox(SandboxType.DOCKER)
    assert tool.is_compatible_with_sandbox(SandboxType.DOCKER_NOTEBOOK)
    assert not tool.is_compatible_with_sandbox(SandboxType.DUMMY)
    assert Echo().is_compatible_with_sandbox(SandboxType.DUMMY)
