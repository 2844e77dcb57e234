"""What a tool is: a name, two models and a pure function from parameters to a job for the guest.

A tool runs nothing itself. It says what its parameters and options look like (pydantic models, published as a JSON
schema in the form of OpenAI's function calling) and plans a `Job`. Plug-ins implement `Tool` and announce themselves
by an entry point of the group ``enclaved.tools``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from enclaved.errors import FieldViolation, InvalidRequest
from enclaved.model import Job, ToolDescription

ARGUMENT_LIMIT_BYTES = 120 * 1024
"""Longest single argument of a command. Linux allows 128 KiB; the rest is for what we put around it."""


@runtime_checkable
class Tool(Protocol):
    """A named capability. One instance serves all calls, so it keeps no state."""

    name: str
    """Matches ``^[a-z][a-z0-9_]{0,62}$``."""
    aliases: tuple[str, ...]
    """Other names for the same tool, of the same form."""
    description: str
    """What it does, for a person or a language model."""
    Params: type[BaseModel]
    """What a call may say. Derive from `Strict`, or from `Timed` if callers may choose a timeout."""
    Options: type[BaseModel]
    """What the creator of a sandbox may configure. Derive from `Timed`."""

    def plan(self, params: Any, options: Any) -> Job:
        """Turns validated parameters (a ``Params``) and options (an ``Options``) into a job. Pure.

        Raises `InvalidRequest`: by `refused` for well-formed nonsense, otherwise with ``parameters.NAME`` as field.
        """
        ...


class Strict(BaseModel):
    """A model that takes no unknown fields and converts nothing: ``"5"`` is not 5, and 1 is not true."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# Published as "integer", as documented, so that language models keep to whole seconds; fractions are taken as well.
_Seconds = Annotated[float | None, Field(ge=0, allow_inf_nan=False), WithJsonSchema({"type": "integer"})]


class Timed(Strict):
    """Parameters or options with a timeout.

    The default is for readers of the schema: a timeout that is not set leaves the choice to the tool's option, then
    to the sandbox. Negative numbers, NaN and infinity are refused.
    """

    timeout: _Seconds = Field(
        default=30, description="Execution timeout in seconds; 0 for the longest that policy allows"
    )

    def chosen_timeout_s(self) -> float | None:
        """Returns the timeout that was set, 0 for the longest allowed, or ``None`` if none was set."""
        return (self.timeout or 0.0) if "timeout" in self.model_fields_set else None


def refused(parameter: str, description: str) -> InvalidRequest:
    """Makes the refusal of well-formed nonsense, which callers see as a failed result instead of an exception."""
    return InvalidRequest(FieldViolation(f"parameters.{parameter}", description, "TOOL_REFUSED"))


def check_argument(parameter: str, value: str, limit_bytes: int, remedy: str) -> None:
    """Refuses what the kernel could not take as an argument or a path: NUL, or more than ``limit_bytes``.

    Raises `InvalidRequest`, whose text ends with ``remedy`` where the length is at fault.
    """
    if "\0" in value:
        raise InvalidRequest.of(f"parameters.{parameter}", "contains a NUL character; remove it")
    size_bytes = len(value.encode())
    if size_bytes > limit_bytes:
        text = f"has {size_bytes} bytes, and at most {limit_bytes} are possible; {remedy}"
        raise InvalidRequest.of(f"parameters.{parameter}", text)


def describe(tool: Tool) -> ToolDescription:
    """Describes a tool as callers see it, with its schema in the form of OpenAI's function calling."""
    found = _without_titles(tool.Params.model_json_schema())
    parameters = {
        "type": "object",
        "properties": found.get("properties", {}),
        "required": found.get("required", []),
        "additionalProperties": False,
    }
    if "$defs" in found:
        parameters["$defs"] = found["$defs"]
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return ToolDescription(tool.name, tool.aliases, tool.description, {"type": "function", "function": function})


def _without_titles(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Removes what pydantic adds for itself: titles everywhere, and defaults of null."""
    plain: dict[str, Any] = {}
    for key, value in schema.items():
        match key, value:
            case ("title", str()) | ("default", None):
                continue
            case (("properties" | "$defs"), dict()):
                # Here the keys are names, and "title" may be one of them.
                plain[key] = {name: _without_titles(inner) for name, inner in value.items()}
            case (("default" | "const" | "examples"), _):
                plain[key] = value
            case _, dict():
                plain[key] = _without_titles(value)
            case _, list():
                plain[key] = [_without_titles(item) if isinstance(item, dict) else item for item in value]
            case _:
                plain[key] = value
    return plain
