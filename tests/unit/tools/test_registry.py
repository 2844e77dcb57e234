"""Looking tools up, and turning a stranger's dictionaries into a job."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any, cast

import pytest
from pydantic import BaseModel

from enclaved.errors import InvalidRequest, ToolNotFound
from enclaved.model import CommandJob, PythonJob
from enclaved.tools.base import Strict, Timed, Tool
from enclaved.tools.python_executor import PythonExecutorTool
from enclaved.tools.registry import GROUP, ToolRegistry, ToolSetupError
from enclaved.tools.shell_executor import ShellExecutorTool


class Echo(Tool):
    """A plug-in as others write them."""

    name = "echo"
    aliases: tuple[str, ...] = ()
    description = "Repeats text"
    Params: type[BaseModel] = Timed
    Options: type[BaseModel] = Timed

    def plan(self, params: Timed, options: Timed) -> CommandJob:
        return CommandJob(argv=("echo",))


class Impostor(Echo):
    """Takes the alias of a tool of ours."""

    aliases = ("bash",)


class Shouting(Echo):
    """Has a name that no tool may have."""

    name = "ECHO!"


class Mute(Echo):
    """Does not say what it does."""

    description = " "


class Opaque(Strict):
    """Has no JSON schema."""

    callback: Callable[[], None]


class Hidden(Echo):
    """Cannot be described."""

    Params = Opaque


class Untyped(Echo):
    """Has parameters that are no model."""

    Params = cast("type[BaseModel]", dict)  # as a plug-in without types may


def entry(name: str, attribute: str) -> EntryPoint:
    return EntryPoint(name, attribute if ":" in attribute else f"{__name__}:{attribute}", GROUP)


@pytest.fixture
def registry() -> ToolRegistry:
    return ToolRegistry.built_in()


# -- names -------------------------------------------------------------------------------------------------------


def test_a_tool_is_found_by_name_and_by_alias(registry: ToolRegistry) -> None:
    assert registry.get("bash") is registry.get("shell_executor")
    assert registry.canonical("bash") == "shell_executor"


def test_names_and_descriptions_are_sorted_and_can_be_narrowed(registry: ToolRegistry) -> None:
    assert registry.names() == ("file_operation", "python_executor", "shell_executor")
    assert tuple(each.name for each in registry.descriptions()) == registry.names()
    assert [each.name for each in registry.descriptions({"shell_executor"})] == ["shell_executor"]
    assert registry.descriptions(()) == ()


def test_the_command_tool_works_but_is_not_listed(registry: ToolRegistry) -> None:
    assert registry.is_internal("command")
    assert not registry.is_internal("shell_executor")
    assert "command" not in registry.names()
    assert registry.descriptions({"command"}) == ()
    assert registry.prepare("command", {"command": ["true"]}).job == CommandJob(argv=("true",))


@pytest.mark.parametrize("name", ["", "nope", "PYTHON_EXECUTOR", "python_executor\n", "\ud800", "x" * 100_000])
def test_an_unknown_tool_is_answered_with_those_there_are(registry: ToolRegistry, name: str) -> None:
    with pytest.raises(ToolNotFound) as caught:
        registry.prepare(name, {})

    assert caught.value.available == registry.names()
    assert "command" not in caught.value.available
    assert len(str(caught.value).encode()) < 1000


# -- plug-ins ----------------------------------------------------------------------------------------------------


def test_the_entry_points_that_the_package_declares_load() -> None:
    registry = ToolRegistry.from_entry_points(
        [
            entry("file_operation", "enclaved.tools.file_operation:FileOperationTool"),
            entry("python_executor", "enclaved.tools.python_executor:PythonExecutorTool"),
            entry("shell_executor", "enclaved.tools.shell_executor:ShellExecutorTool"),
        ]
    )

    assert registry.names() == ToolRegistry.built_in().names()


def test_a_plug_in_is_served_beside_our_tools() -> None:
    registry = ToolRegistry([PythonExecutorTool(), Echo()])

    assert registry.names() == ("echo", "python_executor")
    assert registry.prepare("echo", {}).job == CommandJob(argv=("echo",))


def test_no_tools_at_all_is_a_broken_installation() -> None:
    with pytest.raises(ToolSetupError, match="install ms-enclave again"):
        ToolRegistry.from_entry_points([])


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("no_such_module:Tool", "ModuleNotFoundError"),
        ("enclaved.tools.base:NoSuchTool", "AttributeError"),
        ("enclaved.tools.base:describe", "is no tool"),
        ("enclaved.model:FileJob", "TypeError"),
        ("enclaved.tools.shell_executor:ShellExecutorTool", "calls itself 'shell_executor'"),
    ],
)
def test_a_plug_in_that_cannot_be_loaded_is_named(value: str, why: str) -> None:
    with pytest.raises(ToolSetupError, match=why) as caught:
        ToolRegistry.from_entry_points([entry("theirs", value)])

    assert "'theirs'" in str(caught.value)
    assert value in str(caught.value)


@pytest.mark.parametrize(
    ("tool", "why"),
    [
        (Shouting(), "does not match"),
        (Mute(), "has no description"),
        (Untyped(), "has Params that are no pydantic model"),
        (Hidden(), "without a JSON schema"),
    ],
)
def test_a_malformed_plug_in_is_named(tool: Tool, why: str) -> None:
    with pytest.raises(ToolSetupError, match=why) as caught:
        ToolRegistry([tool])

    assert type(tool).__name__ in str(caught.value)


def test_two_tools_of_one_name_or_alias_are_refused() -> None:
    with pytest.raises(ToolSetupError, match=r"'bash': .*ShellExecutorTool and .*Impostor"):
        ToolRegistry([ShellExecutorTool(), Impostor()])
    with pytest.raises(ToolSetupError, match="'echo'"):
        ToolRegistry([Echo(), Echo()])


# -- calls -------------------------------------------------------------------------------------------------------


def violations(registry: ToolRegistry, tool: str, parameters: dict[Any, Any], **options: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        registry.prepare(tool, parameters, options)
    for each in caught.value.violations:
        each.field.encode()
        each.description.encode()
    return {each.field: each.description for each in caught.value.violations}


def test_a_call_by_alias_is_prepared_under_the_canonical_name(registry: ToolRegistry) -> None:
    prepared = registry.prepare("bash", {"command": "true"})

    assert prepared.tool_name == "shell_executor"
    assert prepared.job == CommandJob(shell="true")
    assert prepared.timeout_s is None


@pytest.mark.parametrize(
    ("parameters", "options", "timeout_s"),
    [
        ({}, {}, None),
        ({}, {"timeout": 7}, 7.0),
        ({"timeout": 3}, {"timeout": 7}, 3.0),
        ({"timeout": 0}, {"timeout": 7}, 0.0),
        ({"timeout": None}, {}, 0.0),
        ({}, {"timeout": None}, 0.0),
        ({"timeout": 30}, {}, 30.0),
        ({"timeout": 0.25}, {}, 0.25),
    ],
)
def test_the_timeout_of_the_call_counts_more_than_the_options(
    registry: ToolRegistry, parameters: dict[str, Any], options: dict[str, Any], timeout_s: float | None
) -> None:
    assert registry.prepare("python_executor", {"code": "1", **parameters}, options).timeout_s == timeout_s


def test_an_option_sets_the_timeout_of_a_tool_whose_calls_cannot(registry: ToolRegistry) -> None:
    call = {"operation": "list", "file_path": "."}

    assert registry.prepare("file_operation", call, {"timeout": 5}).timeout_s == 5.0
    assert "parameters.timeout" in violations(registry, "file_operation", {**call, "timeout": 5})


def test_each_wrong_parameter_is_named_with_what_to_do(registry: ToolRegistry) -> None:
    found = violations(registry, "python_executor", {"timeout": "5 apples", "nope": 1, "isolated": 1})

    assert found == {
        "parameters.code": "is required (Python code to execute)",
        "parameters.isolated": "must be a valid boolean (Run in a fresh interpreter that shares no variables with "
        "other calls)",
        "parameters.timeout": "must be a valid number (Execution timeout in seconds; 0 for the longest that policy "
        "allows)",
        "parameters.nope": "is no parameter of python_executor; known ones: code, isolated, timeout",
    }


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), True])
def test_a_malformed_timeout_is_named(registry: ToolRegistry, timeout: object) -> None:
    assert list(violations(registry, "python_executor", {"code": "1", "timeout": timeout})) == ["parameters.timeout"]


def test_unknown_options_are_refused_with_the_known_ones(registry: ToolRegistry) -> None:
    with pytest.raises(InvalidRequest) as caught:
        registry.check_options("bash", {"allowed_modules": ["math"], "timeout": -1})

    assert {each.field: each.description for each in caught.value.violations} == {
        "tools.shell_executor.timeout": "must be greater than or equal to 0 (Execution timeout in seconds; 0 for the "
        "longest that policy allows)",
        "tools.shell_executor.allowed_modules": "is no option of shell_executor; known ones: "
        "allowed_commands, blocked_commands, max_output_size, shell_path, timeout",
    }
    assert "tools.python_executor.nope" in violations(registry, "python_executor", {"code": "1"}, nope=1)


@pytest.mark.parametrize(
    ("tool", "parameters", "field"),
    [
        ("python_executor", {"code": "print('\ud800')"}, "parameters.code"),
        ("shell_executor", {"command": ["echo", "\udfff"]}, "parameters.command"),
        ("file_operation", {"operation": "write", "file_path": "a", "content": "\udc80"}, "parameters.content"),
        ("python_executor", {"code": "1", "x\ud800": 1}, "parameters.'x\\ud800'"),
        ("python_executor", {"code": "1", "x": [{"\ud800": 1}]}, "parameters.x"),
    ],
)
def test_text_that_is_no_unicode_is_named(
    registry: ToolRegistry, tool: str, parameters: dict[str, Any], field: str
) -> None:
    found = violations(registry, tool, parameters)

    assert list(found) == [field]
    assert "surrogate" in found[field]


@pytest.mark.parametrize("key", ["a b", "a\nb", "", "x" * 100_000, 1, None, ("a", "b")])
def test_odd_parameter_names_are_shown_escaped_and_short(registry: ToolRegistry, key: object) -> None:
    (field,) = violations(registry, "python_executor", {"code": "1", key: 1})

    assert field.startswith("parameters.")
    assert field.isprintable()
    assert len(field) < 100


def test_a_flood_of_wrong_parameters_is_answered_briefly(registry: ToolRegistry) -> None:
    found = violations(registry, "python_executor", {"code": "1", **{f"x{i}": i for i in range(1000)}})

    assert len(found) == 11
    assert found["parameters"] == "990 more fields are wrong"


def test_the_callers_values_do_not_come_back_in_errors(registry: ToolRegistry) -> None:
    found = violations(registry, "python_executor", {"code": ["secret" * 1000]})

    assert "secret" not in str(found)


def test_preparing_does_not_change_what_it_is_given(registry: ToolRegistry) -> None:
    parameters = {"code": "x", "timeout": 3}
    options = {"timeout": 4}

    prepared = registry.prepare("python_executor", parameters, options)

    assert prepared.job == PythonJob("x")
    assert (parameters, options) == ({"code": "x", "timeout": 3}, {"timeout": 4})
