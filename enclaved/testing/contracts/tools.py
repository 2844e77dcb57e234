"""What every tool promises."""
# ruff: noqa: S101 - assertions are what a contract consists of

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from enclaved.agent.jobs import encode_job
from enclaved.errors import InvalidRequest
from enclaved.model import CommandJob, FileJob, PythonJob
from enclaved.tools.base import Tool, describe
from enclaved.tools.registry import ToolRegistry

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "\0",
    "\ud800",
    "x" * 2_000_000,
    [],
    [None],
    {},
    {"nested": {"more": []}},
    b"bytes",
)


class ToolContract:
    """What every `Tool` promises. A subclass says how one is made, and at least one call that it plans."""

    make: ClassVar[Callable[[], Tool]]
    calls: ClassVar[Sequence[Mapping[str, Any]]]
    """Parameters of calls that are in order."""

    @pytest.fixture
    def tool(self) -> Tool:
        """A tool as the registry holds it."""
        return type(self).make()

    @pytest.fixture
    def registry(self, tool: Tool) -> ToolRegistry:
        """A registry of this tool alone. It refuses names, models and descriptions that cannot be."""
        return ToolRegistry([tool])

    def test_its_names_can_be_names_and_differ(self, tool: Tool) -> None:
        names = [tool.name, *tool.aliases]
        assert all(_NAME.fullmatch(name) for name in names)
        assert len(set(names)) == len(names)

    def test_it_is_reached_by_its_name_and_every_alias(self, tool: Tool, registry: ToolRegistry) -> None:
        for name in (tool.name, *tool.aliases):
            assert registry.canonical(name) == tool.name
            assert registry.prepare(name, self.calls[0]).tool_name == tool.name

    def test_its_schema_is_a_function_that_language_models_understand(self, tool: Tool) -> None:
        schema = describe(tool).schema
        assert json.loads(json.dumps(schema)) == schema
        assert schema["type"] == "function"
        function = schema["function"]
        assert (function["name"], function["description"]) == (tool.name, tool.description)
        assert tool.description.strip() == tool.description != ""
        parameters = function["parameters"]
        assert (parameters["type"], parameters["additionalProperties"]) == ("object", False)
        assert set(parameters["required"]) <= set(parameters["properties"])
        for name, found in parameters["properties"].items():
            assert _described(found), f"the parameter {name!r} has no description"
            assert _typed(found), f"the parameter {name!r} has no type"

    def test_the_schema_names_every_parameter_of_a_good_call(self, tool: Tool) -> None:
        parameters = describe(tool).schema["function"]["parameters"]
        for call in self.calls:
            assert set(call) <= set(parameters["properties"])
            assert set(parameters["required"]) <= set(call)

    def test_a_good_call_becomes_a_job_that_can_be_sent(self, tool: Tool, registry: ToolRegistry) -> None:
        for call in self.calls:
            job = registry.prepare(tool.name, call).job
            assert isinstance(job, PythonJob | CommandJob | FileJob)
            assert encode_job(job, {}).document

    def test_planning_is_pure(self, tool: Tool) -> None:
        """The same call plans the same job, again and by another instance; and it changes nothing it was given."""
        for call in self.calls:
            params, options = tool.Params.model_validate(dict(call)), tool.Options()
            before = params.model_dump()
            jobs = [tool.plan(params, options), tool.plan(params, options), type(self).make().plan(params, options)]
            assert jobs[0] == jobs[1] == jobs[2]
            assert params.model_dump() == before

    def test_an_unknown_parameter_or_option_is_refused_by_name(self, tool: Tool, registry: ToolRegistry) -> None:
        with pytest.raises(InvalidRequest) as caught:
            registry.prepare(tool.name, {**self.calls[0], "no_such_parameter": 1})
        assert [violation.field for violation in caught.value.violations] == ["parameters.no_such_parameter"]
        with pytest.raises(InvalidRequest) as caught:
            registry.prepare(tool.name, self.calls[0], {"no_such_option": 1})
        assert [violation.field for violation in caught.value.violations] == [f"tools.{tool.name}.no_such_option"]

    def test_a_missing_parameter_is_refused_by_name(self, tool: Tool, registry: ToolRegistry) -> None:
        for name in describe(tool).schema["function"]["parameters"]["required"]:
            call = {key: value for key, value in self.calls[0].items() if key != name}
            with pytest.raises(InvalidRequest) as caught:
                registry.prepare(tool.name, call)
            assert f"parameters.{name}" in [violation.field for violation in caught.value.violations]

    def test_an_odd_value_is_planned_or_refused_by_name(self, tool: Tool, registry: ToolRegistry) -> None:
        """Whatever comes, the tool answers with a job that can be sent or names the parameter; it never crashes."""
        for name in describe(tool).schema["function"]["parameters"]["properties"]:
            for value in _ODD:
                try:
                    encode_job(registry.prepare(tool.name, {**self.calls[0], name: value}).job, {})
                except InvalidRequest as refusal:
                    for violation in refusal.violations:
                        assert violation.field.split(".")[0] == "parameters"
                        assert violation.description
                        assert len(violation.description) < 1000


def _described(schema: Mapping[str, Any]) -> bool:
    alternatives = schema.get("anyOf") or schema.get("oneOf") or ()
    return bool(schema.get("description")) or any(_described(inner) for inner in alternatives)


def _typed(schema: Mapping[str, Any]) -> bool:
    return any(key in schema for key in ("type", "anyOf", "oneOf", "$ref", "enum", "const"))
