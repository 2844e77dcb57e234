"""Descriptions of tools, and what plug-ins build on."""

from __future__ import annotations

import math

import pytest
from pydantic import BaseModel, Field, ValidationError

from enclaved.errors import InvalidRequest
from enclaved.model import CommandJob
from enclaved.tools.base import Timed, Tool, check_argument, describe, refused


class Inner(BaseModel):
    title: str = Field(description="a parameter that is called title")


class TitledParams(Timed):
    title: str = Field(description="The title")
    inner: Inner | None = None
    tags: list[str] = Field(default_factory=list)


class Titled(Tool):
    name = "titled"
    aliases = ("entitled",)
    description = "Has a parameter called title"
    Params = TitledParams
    Options = Timed

    def plan(self, params: TitledParams, options: Timed) -> CommandJob:
        return CommandJob(argv=(params.title,))


def test_a_description_is_an_openai_function_without_pydantics_titles() -> None:
    description = describe(Titled())

    assert description.name == "titled"
    assert description.aliases == ("entitled",)
    assert description.schema["type"] == "function"
    function = description.schema["function"]
    assert function["name"] == "titled"
    assert function["description"] == "Has a parameter called title"
    parameters = function["parameters"]
    assert parameters["type"] == "object"
    assert parameters["required"] == ["title"]
    assert parameters["additionalProperties"] is False
    assert parameters["properties"]["title"] == {"type": "string", "description": "The title"}
    assert parameters["properties"]["timeout"]["default"] == 30
    assert "default" not in parameters["properties"]["inner"]
    assert "title" not in parameters["$defs"]["Inner"]
    assert "title" in parameters["$defs"]["Inner"]["properties"]


def test_a_timeout_that_is_not_set_leaves_the_choice_to_others() -> None:
    assert Timed().chosen_timeout_s() is None


@pytest.mark.parametrize(("said", "meant"), [(0, 0.0), (None, 0.0), (30, 30.0), (0.5, 0.5)])
def test_a_timeout_that_is_set_counts_and_none_means_the_longest(said: float | None, meant: float) -> None:
    assert Timed(timeout=said).chosen_timeout_s() == meant


@pytest.mark.parametrize("timeout", [-1, math.nan, math.inf, -math.inf, True, "5", [], 10**400])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(timeout: object) -> None:
    with pytest.raises(ValidationError):
        Timed.model_validate({"timeout": timeout})


def test_a_refusal_is_marked_so_that_it_becomes_a_failed_result() -> None:
    (violation,) = refused("code", "No code provided").violations

    assert (violation.field, violation.description, violation.reason) == (
        "parameters.code",
        "No code provided",
        "TOOL_REFUSED",
    )


def test_an_argument_is_measured_in_bytes() -> None:
    check_argument("path", "é" * 5, 10, "shorten it")

    with pytest.raises(InvalidRequest, match=r"parameters\.path: has 12 bytes.*at most 10.*shorten it"):
        check_argument("path", "é" * 6, 10, "shorten it")


def test_an_argument_with_nul_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="NUL"):
        check_argument("path", "a\0b", 10, "shorten it")
