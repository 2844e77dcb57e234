"""The options with which tools are restricted: what they allow, and what they refuse before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from enclaved.errors import InvalidRequest
from enclaved.model import CommandJob, FileJob, ImportRules, PathRules, PythonJob
from enclaved.tools.registry import PreparedCall, ToolRegistry

REGISTRY = ToolRegistry.built_in()


def prepare(tool: str, options: dict[str, Any], **parameters: Any) -> PreparedCall:
    return REGISTRY.prepare(tool, parameters, options)


def refusal(tool: str, options: dict[str, Any], **parameters: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        prepare(tool, options, **parameters)
    (violation,) = caught.value.violations
    assert violation.reason == "TOOL_REFUSED"
    return violation.description


@pytest.mark.parametrize(
    ("tool", "options", "field"),
    [
        ("python_executor", {"allowed_modules": "os"}, "allowed_modules"),
        ("python_executor", {"allowed_modules": ["os.*"]}, "allowed_modules.0"),
        ("python_executor", {"blocked_modules": ["os", ""]}, "blocked_modules.1"),
        ("python_executor", {"blocked_modules": ["a"] * 257}, "blocked_modules"),
        ("python_executor", {"max_output_size": 0}, "max_output_size"),
        ("python_executor", {"max_output_size": True}, "max_output_size"),
        ("python_executor", {"python_path": "/tmp/python"}, "python_path"),
        ("python_executor", {"restrictions": {}}, "restrictions"),
        ("shell_executor", {"allowed_commands": ["git status"]}, "allowed_commands.0"),
        ("shell_executor", {"shell_path": "sh"}, "shell_path"),
        ("file_operation", {"allowed_paths": [""]}, "allowed_paths.0"),
        ("file_operation", {"blocked_paths": ["a\0b"]}, "blocked_paths.0"),
        ("file_operation", {"max_file_size": 2**41}, "max_file_size"),
        ("file_operation", {"allowed_extensions": ["a/b"]}, "allowed_extensions.0"),
    ],
)
def test_malformed_options_are_refused_by_name(tool: str, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        REGISTRY.check_options(tool, options)
    assert [violation.field for violation in caught.value.violations] == [f"tools.{tool}.{field}"]


def test_the_options_of_a_tool_can_be_listed_by_any_of_its_names() -> None:
    assert REGISTRY.option_names("bash") == REGISTRY.option_names("shell_executor")
    assert REGISTRY.option_names("python_executor") == (
        "allowed_modules",
        "blocked_modules",
        "max_output_size",
        "python_path",
        "timeout",
    )


def test_every_restriction_says_whether_it_is_a_wall() -> None:
    for tool in REGISTRY.names():
        for name, field in REGISTRY.get(tool).Options.model_fields.items():
            if name.startswith(("allowed_", "blocked_", "max_")):
                assert str(field.description).endswith(("A guard rail", "A wall", "Holds for the tool")), name


# -- python_executor ---------------------------------------------------------------------------------------------


def test_import_rules_travel_with_the_job_and_only_if_there_are_some() -> None:
    rules = ImportRules(("math",), ("os",))
    options = {"allowed_modules": ["math"], "blocked_modules": ["os"], "python_path": "python3"}
    assert prepare("python_executor", options, code="1").job == PythonJob("1", imports=rules)
    assert prepare("python_executor", options, code="1", isolated=True).job == PythonJob("1", None, rules)
    assert prepare("python_executor", {"allowed_modules": []}, code="1").job == PythonJob("1", imports=ImportRules(()))
    assert prepare("python_executor", {"blocked_modules": []}, code="1").job == PythonJob("1")


@pytest.mark.parametrize("tool", ["python_executor", "shell_executor"])
def test_a_limit_of_output_is_part_of_the_prepared_call(tool: str) -> None:
    given = {"code": "1"} if tool == "python_executor" else {"command": "true"}
    assert prepare(tool, {"max_output_size": 5}, **given).output_limit_bytes == 5
    assert prepare(tool, {}, **given).output_limit_bytes is None


# -- shell_executor ----------------------------------------------------------------------------------------------


def test_allowed_commands_are_run_and_others_refused_with_the_known_ones() -> None:
    options = {"allowed_commands": ["ls", "echo", "/bin/cat"]}
    for command in ("ls -l | /bin/cat", ["ls", "-l"], "echo 'rm -rf /'"):
        assert isinstance(prepare("shell_executor", options, command=command).job, CommandJob)
    known = "(allowed_commands: ls, echo, /bin/cat)"
    assert refusal("shell_executor", options, command="ls; rm x") == f"Command not allowed: rm {known}"
    assert refusal("shell_executor", options, command=["rm", "x"]) == f"Command not allowed: rm {known}"
    assert refusal("shell_executor", options, command="./ls") == f"Command not allowed: ./ls {known}"
    assert "with a substitution it cannot be compared" in refusal("shell_executor", options, command="echo $(rm x)")
    assert "(allowed_commands: none)" in refusal("shell_executor", {"allowed_commands": []}, command="ls")


def test_blocked_commands_are_refused_by_name_and_by_path() -> None:
    options = {"blocked_commands": ["rm", "/usr/bin/curl"]}
    for command in ("rm x", "ls && /bin/rm x", ["/bin/rm"], "r''m x", "/usr/bin/curl x", "cat <<EOF\n$(rm x)\nEOF"):
        assert "(blocked_commands)" in refusal("shell_executor", options, command=command)
    for command in ("echo rm", "ls", "cat <<EOF\nfarm\nEOF", "curl x", ["echo", "rm"]):
        assert prepare("shell_executor", options, command=command)


def test_another_shell_runs_the_command() -> None:
    job = prepare("bash", {"shell_path": "/bin/sh"}, command="echo $0").job
    assert job == CommandJob(argv=("/bin/sh", "-c", "echo $0"))
    assert prepare("bash", {"shell_path": "/bin/sh"}, command=["a"]).job == CommandJob(argv=("a",))


def test_what_restricts_the_shell_restricts_execute_command_too() -> None:
    tools = {"shell_executor": {"blocked_commands": ["rm"], "timeout": 5}}
    assert REGISTRY.options_in("command", tools) == {"blocked_commands": ["rm"]}
    assert REGISTRY.options_in("shell_executor", tools) == tools["shell_executor"]
    assert REGISTRY.options_in("command", {}) == {}
    assert REGISTRY.options_in("command", None) == {}


# -- file_operation ----------------------------------------------------------------------------------------------


def test_path_rules_travel_with_the_job_and_only_if_there_are_some() -> None:
    options = {"allowed_paths": ["/sandbox/a"], "blocked_paths": ["b"], "max_file_size": 3}
    job = prepare("file_operation", options, operation="read", file_path="x").job
    assert isinstance(job, FileJob)
    assert job.rules == PathRules(("/sandbox/a",), ("b",), 3)
    job = prepare("file_operation", {"allowed_extensions": ["txt"]}, operation="list", file_path="x").job
    assert isinstance(job, FileJob)
    assert job.rules is None


@pytest.mark.parametrize("operation", ["create", "read", "write", "delete"])
def test_a_file_needs_an_allowed_extension(operation: str) -> None:
    options = {"allowed_extensions": [".txt", "tar.gz", ""]}
    for path in ("a.txt", "a.b.TXT", "x/y.tar.gz", "Makefile"):
        assert prepare("file_operation", options, operation=operation, file_path=path, content="")
    text = refusal("file_operation", options, operation=operation, file_path="x/a.py", content="")
    assert text == "File extension not allowed: a.py (allowed_extensions: .txt, .tar.gz, none)"
    refusal("file_operation", options, operation=operation, file_path="x.txt/a.gz", content="")


def test_content_beyond_the_largest_file_is_refused_in_bytes() -> None:
    options = {"max_file_size": 3}
    assert prepare("file_operation", options, operation="write", file_path="a", content="abc")
    text = refusal("file_operation", options, operation="write", file_path="a", content="äö")
    assert text == "File too large: 4 bytes, and at most 3 are allowed (max_file_size)"
    assert prepare("file_operation", options, operation="write", file_path="a", content="äö", encoding="latin-1")
