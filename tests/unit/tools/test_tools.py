"""The tools that come with the daemon: what they plan, what they refuse, what they publish."""

from __future__ import annotations

import re
from typing import Any

import pytest

from enclaved.errors import InvalidRequest
from enclaved.model import CommandJob, FileJob, FileOperation, Job, PythonJob
from enclaved.tools.registry import ToolRegistry


def plan(tool: str, **parameters: Any) -> Job:
    return ToolRegistry.built_in().prepare(tool, parameters).job


def refusal(tool: str, **parameters: Any) -> str:
    """Returns the text of a refusal that callers see as a failed result."""
    with pytest.raises(InvalidRequest) as caught:
        plan(tool, **parameters)
    (violation,) = caught.value.violations
    assert violation.reason == "TOOL_REFUSED"
    return violation.description


def error(tool: str, **parameters: Any) -> str:
    """Returns the text of an error that callers see as an exception."""
    with pytest.raises(InvalidRequest) as caught:
        plan(tool, **parameters)
    assert {violation.reason for violation in caught.value.violations} == {"INVALID"}
    return str(caught.value)


def published(tool: str) -> dict[str, Any]:
    (description,) = ToolRegistry.built_in().descriptions({tool})
    parameters: dict[str, Any] = description.schema["function"]["parameters"]
    return parameters


# -- python_executor ---------------------------------------------------------------------------------------------


def test_python_runs_in_the_persistent_context_unless_isolated() -> None:
    assert plan("python_executor", code="x = 1\n") == PythonJob("x = 1\n", context="default")
    assert plan("python_executor", code="x", isolated=False) == PythonJob("x", context="default")
    assert plan("python_executor", code="x", isolated=True) == PythonJob("x", context=None)


@pytest.mark.parametrize("code", ["", " ", "\n\t \n"])
def test_blank_code_is_refused_with_the_documented_text(code: str) -> None:
    assert refusal("python_executor", code=code) == "No code provided"


def test_code_that_does_not_compile_is_the_interpreters_to_judge() -> None:
    assert plan("python_executor", code='print("Missing quote') == PythonJob('print("Missing quote')
    assert plan("python_executor", code="a\0b") == PythonJob("a\0b")


def test_the_python_schema_has_the_documented_parameters() -> None:
    parameters = published("python_executor")

    assert parameters["properties"]["code"] == {"type": "string", "description": "Python code to execute"}
    assert parameters["properties"]["timeout"]["type"] == "integer"
    assert parameters["properties"]["timeout"]["default"] == 30
    assert parameters["required"] == ["code"]


# -- shell_executor ----------------------------------------------------------------------------------------------


def test_a_string_goes_through_a_shell_and_a_list_does_not() -> None:
    assert plan("shell_executor", command="echo hi; echo err >&2") == CommandJob(shell="echo hi; echo err >&2")
    assert plan("shell_executor", command=["echo", "a b", ""]) == CommandJob(argv=("echo", "a b", ""))


@pytest.mark.parametrize("tool", ["shell_executor", "bash", "command"])
@pytest.mark.parametrize("command", ["", " \n", [], [""], [" "], ["", "a"]])
def test_a_blank_command_is_refused_with_the_documented_text(tool: str, command: object) -> None:
    assert refusal(tool, command=command) == "No command provided"


@pytest.mark.parametrize("command", [None, 1, {"a": 1}, ["echo", 1], [["echo"]], b"echo", ("echo",)])
def test_a_command_of_another_type_is_one_clear_error(command: object) -> None:
    assert error("shell_executor", command=command) == (
        "parameters.command: must be a string for a shell, or a list of strings to run as it is"
    )


def test_what_linux_could_not_pass_on_is_an_error_that_says_what_to_do() -> None:
    assert "parameters.command: has 122881 bytes" in error("shell_executor", command="x" * (120 * 1024 + 1))
    assert "file" in error("shell_executor", command="é" * (61 * 1024))
    assert "parameters.command.1:" in error("shell_executor", command=["echo", "x" * (120 * 1024 + 1)])
    assert "for its arguments" in error("shell_executor", command=["echo", *("x" * 100 * 1024 for _ in range(11))])
    assert "for its arguments" in error("shell_executor", command=["echo", *[""] * 200_000])
    assert "NUL" in error("shell_executor", command="echo \0")
    assert "parameters.command.1: contains a NUL" in error("shell_executor", command=["echo", "a\0"])


def test_the_longest_command_that_linux_can_pass_on_is_taken() -> None:
    assert plan("shell_executor", command="x" * (120 * 1024)) == CommandJob(shell="x" * (120 * 1024))


def test_the_shell_schema_takes_a_string_or_a_list() -> None:
    parameters = published("shell_executor")

    assert [each["type"] for each in parameters["properties"]["command"]["anyOf"]] == ["string", "array"]
    assert parameters["properties"]["command"]["anyOf"][1]["items"] == {"type": "string"}
    assert parameters["required"] == ["command"]


# -- file_operation ----------------------------------------------------------------------------------------------


def test_write_replaces_makes_parents_and_reports() -> None:
    assert plan("file_operation", operation="write", file_path="/sandbox/a/b.txt", content="x") == FileJob(
        FileOperation.WRITE,
        "/sandbox/a/b.txt",
        content="x",
        create_parents=True,
        report="File written successfully: /sandbox/a/b.txt",
    )


@pytest.mark.parametrize(("parameters", "content"), [({}, ""), ({"content": None}, ""), ({"content": "x"}, "x")])
def test_create_writes_a_file_and_needs_no_content(parameters: dict[str, Any], content: str) -> None:
    job = plan("file_operation", operation="create", file_path="a.txt", **parameters)

    assert isinstance(job, FileJob)
    assert (job.operation, job.content, job.create_parents) == (FileOperation.WRITE, content, True)


def test_the_other_operations_take_a_path() -> None:
    assert plan("file_operation", operation="read", file_path="a") == FileJob(FileOperation.READ, "a")
    assert plan("file_operation", operation="list", file_path="a") == FileJob(FileOperation.LIST, "a")
    assert plan("file_operation", operation="exists", file_path="a") == FileJob(FileOperation.EXISTS, "a")
    assert plan("file_operation", operation="delete", file_path="a") == FileJob(
        FileOperation.DELETE, "a", report="Successfully deleted: a", recursive=True, missing_ok=True
    )


@pytest.mark.parametrize("path", ["a b", "'\"$(id)`;&|", "-rf", "~", "*", "名前.txt", "a\nb", "../x", "/etc/passwd"])
def test_quotes_and_odd_names_are_passed_on_as_they_are(path: str) -> None:
    job = plan("file_operation", operation="read", file_path=path)

    assert isinstance(job, FileJob)
    assert job.path == path


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"operation": "nope", "file_path": "/sandbox"}, "Unknown operation: nope"),
        ({"operation": "", "file_path": "/sandbox"}, "Unknown operation: "),
        ({"operation": "write", "file_path": "a"}, "Content is required for write operation"),
        ({"operation": "write", "file_path": "a", "content": None}, "Content is required for write operation"),
        ({"operation": "read", "file_path": " "}, "No file path provided"),
    ],
)
def test_well_formed_nonsense_is_refused_with_the_documented_text(parameters: dict[str, Any], text: str) -> None:
    assert refusal("file_operation", **parameters) == text


def test_an_endless_operation_is_not_repeated_in_full() -> None:
    assert len(refusal("file_operation", operation="x" * 1_000_000, file_path="a")) < 200


def test_paths_that_no_file_can_have_are_errors() -> None:
    assert "NUL" in error("file_operation", operation="read", file_path="a\0b")
    assert "at most 4096" in error("file_operation", operation="read", file_path="é" * 2049)
    assert isinstance(plan("file_operation", operation="read", file_path="x" * 4096), FileJob)


@pytest.mark.parametrize("name", ["utf-8", "UTF-8", "utf8", "U8"])
def test_utf_8_moves_bytes_as_they_are(name: str) -> None:
    job = plan("file_operation", operation="read", file_path="a", encoding=name)

    assert isinstance(job, FileJob)
    assert job.encoding is None


@pytest.mark.parametrize(
    ("name", "canonical"),
    [("latin-1", "iso8859-1"), ("windows-1252", "cp1252"), ("GBK", "gbk"), ("utf-8-sig", "utf-8-sig")],
)
def test_other_encodings_are_known_by_all_their_names(name: str, canonical: str) -> None:
    job = plan("file_operation", operation="write", file_path="a", content="x", encoding=name)

    assert isinstance(job, FileJob)
    assert job.encoding == canonical


@pytest.mark.parametrize(
    "name", ["", "nope", "base64", "rot13", "undefined", "mbcs", "aliases", "os", "utf-8\u00e9", "a\nb", "\0"]
)
def test_what_is_no_text_encoding_is_refused_by_name(name: str) -> None:
    text = error("file_operation", operation="read", file_path="a", encoding=name)

    assert text.startswith(f"parameters.encoding: unknown text encoding {name!a}")


def test_an_endless_encoding_is_not_repeated_in_full() -> None:
    assert len(error("file_operation", operation="read", file_path="a", encoding="utf8" * 1_000_000)) < 300


def test_the_file_schema_has_the_documented_parameters() -> None:
    parameters = published("file_operation")

    assert parameters["properties"]["operation"]["enum"] == ["create", "read", "write", "delete", "list", "exists"]
    assert parameters["properties"]["content"]["type"] == "string"
    assert parameters["properties"]["encoding"]["default"] == "utf-8"
    assert parameters["required"] == ["operation", "file_path"]


def test_every_tool_is_published_for_function_calling() -> None:
    for description in ToolRegistry.built_in().descriptions():
        function = description.schema["function"]
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", function["name"])
        assert function["parameters"]["additionalProperties"] is False
        assert "title" not in str(description.schema)
