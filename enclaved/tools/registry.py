"""Knows the daemon's tools by name and alias, and turns a call's dictionaries into a job."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, PydanticUserError, ValidationError
from pydantic_core import ErrorDetails

from enclaved.errors import FieldViolation, InvalidRequest, ToolNotFound
from enclaved.model import EMPTY, Job, ToolDescription
from enclaved.tools.base import Timed, Tool, describe
from enclaved.tools.file_operation import FileOperationTool
from enclaved.tools.python_executor import PythonExecutorTool
from enclaved.tools.restrictions import Programs
from enclaved.tools.shell_executor import CommandTool, ShellExecutorTool

GROUP = "enclaved.tools"
"""The entry-point group of plug-ins. Each entry names a class that can be made without arguments, or an instance."""

COMMAND: Final = CommandTool.name
"""The internal tool that serves ``execute_command``."""

# Violations travel in the call's trailing metadata, which clients limit to 8 KiB.
_VIOLATIONS_MAX = 10
_TEXT_MAX = 300

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")

ModelT = TypeVar("ModelT", bound=BaseModel)


class ToolSetupError(Exception):
    """A tool cannot be served. Raised at start-up only; the text names the plug-in and says what to do."""


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """A call that has been checked and planned."""

    tool_name: str
    """The canonical name, also where the call used an alias."""
    job: Job
    timeout_s: float | None
    """The timeout of the parameters, else of the options; 0: the longest allowed; ``None``: neither says."""
    output_limit_bytes: int | None = None
    """The limit of the options; ``None``: they set none."""


class ToolRegistry:
    """The tools of one daemon. Does not change once it is made.

    The internal tool ``command`` is always there: it serves the documented ``execute_command``, so no sandbox can
    disable it, and no listing shows it.
    """

    def __init__(self, tools: Iterable[Tool]) -> None:
        """Takes the public tools. Raises `ToolSetupError` for a malformed one, and for two of one name or alias."""
        internal = CommandTool()
        self._owners: dict[str, Tool] = {}
        self._descriptions: dict[str, ToolDescription] = {}
        for tool in (internal, *tools):
            self._descriptions[tool.name] = _checked_description(tool)
            for name in (tool.name, *tool.aliases):
                other = self._owners.setdefault(name, tool)
                if other is not tool:
                    raise ToolSetupError(
                        f"two tools are called {name!r}: {_origin(other)} and {_origin(tool)}; uninstall one of them"
                    )
        self._internal = frozenset({internal.name})
        self._names = tuple(sorted(self._descriptions.keys() - self._internal))

    @classmethod
    def built_in(cls) -> ToolRegistry:
        """Makes a registry of the tools that come with the daemon, without looking at what is installed."""
        return cls([FileOperationTool(), PythonExecutorTool(), ShellExecutorTool()])

    @classmethod
    def from_entry_points(cls, found: Iterable[importlib.metadata.EntryPoint] | None = None) -> ToolRegistry:
        """Makes a registry of the installed plug-ins, ours among them (``found``: of these instead).

        Raises `ToolSetupError` naming the plug-in that cannot be used, and where there is none at all.
        """
        entries = sorted(importlib.metadata.entry_points(group=GROUP) if found is None else found)
        if not entries:
            raise ToolSetupError(
                f"no tools are installed (entry points of the group {GROUP!r}); install ms-enclave again"
            )
        return cls([_load(entry) for entry in entries])

    def names(self) -> tuple[str, ...]:
        """Lists the names of the public tools, sorted."""
        return self._names

    def is_internal(self, name: str) -> bool:
        """Tells whether a tool is always enabled and never listed."""
        return name in self._internal

    def get(self, name_or_alias: str) -> Tool:
        """Finds a tool, internal ones included. Raises `ToolNotFound`."""
        tool = self._owners.get(name_or_alias)
        if tool is None:
            raise ToolNotFound(ascii(name_or_alias[:64])[1:-1], self._names)
        return tool

    def canonical(self, name_or_alias: str) -> str:
        """Returns the name of a tool that may have been called by an alias. Raises `ToolNotFound`."""
        return self.get(name_or_alias).name

    def descriptions(self, enabled: Collection[str] | None = None) -> tuple[ToolDescription, ...]:
        """Describes the public tools, sorted by name; ``enabled`` (canonical names) narrows them."""
        return tuple(self._descriptions[name] for name in self._names if enabled is None or name in enabled)

    def check_options(self, name: str, options: Mapping[str, Any]) -> None:
        """Checks the options of a tool. Raises `ToolNotFound`, `InvalidRequest` (``tools.NAME.OPTION``)."""
        self._options(self.get(name), options)

    def prepare(self, name: str, parameters: Mapping[str, Any], options: Mapping[str, Any] = EMPTY) -> PreparedCall:
        """Checks a call and plans its job.

        Raises `ToolNotFound`, and `InvalidRequest` whose violations name ``parameters.PARAMETER`` or
        ``tools.NAME.OPTION``. Whether the sandbox enables the tool is not asked here.
        """
        tool = self.get(name)
        params = _validated(tool.Params, parameters, "parameters", f"parameter of {tool.name}")
        chosen = self._options(tool, options)
        job = tool.plan(params, chosen)
        timeouts = (model.chosen_timeout_s() for model in (params, chosen) if isinstance(model, Timed))
        timeout_s = next((seconds for seconds in timeouts if seconds is not None), None)
        limit = chosen.max_output_size if isinstance(chosen, Programs) else None
        return PreparedCall(tool.name, job, timeout_s, limit)

    def option_names(self, name: str) -> tuple[str, ...]:
        """Lists the options of a tool, sorted. Raises `ToolNotFound`."""
        return tuple(sorted(self.get(name).Options.model_fields))

    def options_in(self, name: str, tools: Mapping[str, Mapping[str, Any]] | None) -> Mapping[str, Any]:
        """Finds the options that a tool has in a sandbox with these tools (canonical name to options; ``None``: all).

        What restricts ``shell_executor`` there restricts the internal tool ``command``; a timeout is its own affair.
        """
        if tools is None:
            return EMPTY
        if name == CommandTool.name:
            shared = tools.get(ShellExecutorTool.name, EMPTY)
            return {option: value for option, value in shared.items() if option != "timeout"}
        return tools.get(name, EMPTY)

    @staticmethod
    def _options(tool: Tool, options: Mapping[str, Any]) -> BaseModel:
        return _validated(tool.Options, options, f"tools.{tool.name}", f"option of {tool.name}")


# -- strangers' dictionaries -------------------------------------------------------------------------------------


def _validated(model: type[ModelT], values: Mapping[str, Any], prefix: str, noun: str) -> ModelT:
    """Makes a model of a dictionary. Raises `InvalidRequest` with one violation for each thing that is wrong."""
    violations = [
        FieldViolation(f"{prefix}.{_shown(key)}", "contains half of a surrogate pair, which is no character; remove it")
        for key, value in values.items()
        if _has_surrogates(key) or _has_surrogates(value)
    ]
    if not violations:
        try:
            return model.model_validate(dict(values))
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False)
            violations = [_violation(model, detail, prefix, noun) for detail in details]
    more = len(violations) - _VIOLATIONS_MAX
    if more > 0:
        violations = [*violations[:_VIOLATIONS_MAX], FieldViolation(prefix, f"{more} more fields are wrong")]
    raise InvalidRequest(*violations)


def _violation(model: type[BaseModel], detail: ErrorDetails, prefix: str, noun: str) -> FieldViolation:
    path = ".".join([prefix, *(_shown(part) for part in detail["loc"])])
    if detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1:
        known = ", ".join(sorted(model.model_fields)) or "none"
        return FieldViolation(path, f"is no {noun}; known ones: {known}")
    text = "is required" if detail["type"] == "missing" else detail["msg"].replace("Input should be", "must be")
    field = model.model_fields.get(str(detail["loc"][0])) if detail["loc"] else None
    hint = f" ({field.description})" if field and field.description else ""
    return FieldViolation(path, _printable(text + hint))


def _has_surrogates(value: object) -> bool:
    """Looks for text that is no Unicode, at any depth: neither UTF-8 frames nor protobuf could carry it."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                try:
                    text.encode()
                except UnicodeEncodeError:
                    return True
            case dict() as members:
                waiting += [*members.keys(), *members.values()]
            case list() | tuple() as items:
                waiting += items
    return False


def _shown(part: object) -> str:
    """Shows a stranger's name in an error: as it is if it is plain, else escaped and cut."""
    text = str(part)
    return text if _PLAIN_KEY.fullmatch(text) else ascii(text[:64])


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()[:_TEXT_MAX]


# -- plug-ins ----------------------------------------------------------------------------------------------------


def _load(entry: importlib.metadata.EntryPoint) -> Tool:
    """Loads one plug-in. Raises `ToolSetupError`."""
    origin = f"tool plug-in {entry.name!r} ({entry.value})"
    try:
        loaded = entry.load()
        tool = loaded() if isinstance(loaded, type) else loaded
    except Exception as error:  # a stranger's module runs here and may raise anything; we stop and say whose it was
        raise ToolSetupError(
            f"{origin} cannot be loaded: {type(error).__name__}: {error}; repair or uninstall it"
        ) from error
    if not isinstance(tool, Tool):
        raise ToolSetupError(f"{origin} is no tool: it needs what enclaved.tools.base.Tool has; repair or uninstall it")
    if tool.name != entry.name:
        raise ToolSetupError(f"{origin} calls itself {tool.name!r}; its name and its entry point's must be the same")
    return tool


def _checked_description(tool: Tool) -> ToolDescription:
    problem = next(_problems(tool), None)
    if problem is not None:
        raise ToolSetupError(f"the tool {_origin(tool)} {problem}; repair or uninstall it")
    try:
        return describe(tool)
    except PydanticUserError as error:
        raise ToolSetupError(f"the tool {_origin(tool)} has Params without a JSON schema: {error.message}") from error


def _problems(tool: Tool) -> Iterator[str]:
    for name in (tool.name, *tool.aliases):
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            yield f"is called {name!r}, which does not match ^{_NAME.pattern}$"
    for attribute in ("Params", "Options"):
        model = getattr(tool, attribute)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            yield f"has {attribute} that are no pydantic model"
    if not tool.description.strip():
        yield "has no description"


def _origin(tool: Tool) -> str:
    return f"{type(tool).__module__}.{type(tool).__qualname__}"
