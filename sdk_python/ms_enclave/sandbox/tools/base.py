"""What a tool is to a caller, and the registry of those that this process knows by name."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import BaseModel

from ms_enclave._model import ExecutionStatus, SandboxType, ToolResult
from ms_enclave.errors import ToolNotFound

if TYPE_CHECKING:
    from ms_enclave.sandbox.boxes.base import Sandbox

ToolT = TypeVar("ToolT", bound="type[Tool]")

_COMPATIBLE = {SandboxType.DOCKER_NOTEBOOK: (SandboxType.DOCKER_NOTEBOOK, SandboxType.DOCKER)}
"""Types that can do what others can, beside themselves."""


class Tool(abc.ABC):
    """A named capability with a schema. Derive from it for tools of your own, which run in your process.

    Register the class with `register_tool` to enable it by name in ``tools_config``, or hand an instance to
    `Sandbox.add_tool`.
    """

    registered_name: ClassVar[str | None] = None
    """The name under which the class was first registered."""

    def __init__(
        self,
        *,
        name: str | None = None,
        description: str | None = None,
        parameters: Mapping[str, Any] | BaseModel | type[BaseModel] | None = None,
        enabled: bool = True,
        timeout: float | None = None,
        **options: Any,
    ) -> None:
        """``parameters`` is a JSON schema, or a pydantic model to make one of. ``name``: else the registered one."""
        self._name = name or self.registered_name or type(self).__name__
        self._description = description
        self._parameters = _schema(parameters)
        self.enabled = enabled
        self.timeout = timeout
        """Seconds for calls that name no timeout; ``None``: the sandbox's."""
        self.options = options

    @property
    def name(self) -> str:
        """Its name, unique in a sandbox."""
        return self._name

    @property
    def description(self) -> str | None:
        """What it does, for a person or a language model."""
        return self._description

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The JSON schema of its parameters."""
        return self._parameters

    @property
    def schema(self) -> dict[str, Any]:
        """The tool in the form of OpenAI's function calling."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    @property
    def required_sandbox_types(self) -> list[SandboxType] | None:
        """The types of sandboxes that it can work with; ``None``: all."""
        return None

    def is_compatible_with_sandbox(self, sandbox_type: SandboxType) -> bool:
        """Says whether it can work with sandboxes of this type."""
        required = self.required_sandbox_types
        return required is None or any(one in required for one in _COMPATIBLE.get(sandbox_type, (sandbox_type,)))

    @abc.abstractmethod
    async def execute(self, sandbox: Sandbox, /, **parameters: Any) -> Any:
        """Does its work against a sandbox. Returns a `ToolResult`, or any other value as the output of one."""


class ToolFactory:
    """The tools that this process knows by name: those of the daemon, and your own."""

    _tools: ClassVar[dict[str, type[Tool]]] = {}

    @classmethod
    def register_tool(cls, tool_name: str, tool_class: type[Tool]) -> None:
        """Makes a class known under a name, in place of any that had it."""
        cls._tools[tool_name] = tool_class
        if tool_class.registered_name is None:
            tool_class.registered_name = tool_name

    @classmethod
    def create_tool(cls, tool_name: str, **options: Any) -> Tool:
        """Makes a tool by name. Raises `ToolNotFound` (a ``ValueError``) for a name that nobody registered."""
        tool_class = cls.find(tool_name)
        if tool_class is None:
            known = ", ".join(cls.get_available_tools())
            raise ToolNotFound(f"Tool name {tool_name} is not registered; registered are {known}")
        return tool_class(**options)

    @classmethod
    def find(cls, tool_name: str) -> type[Tool] | None:
        """Returns the class registered under a name, or ``None``."""
        return cls._tools.get(tool_name)

    @classmethod
    def get_available_tools(cls) -> list[str]:
        """Lists the registered names."""
        return sorted(cls._tools)


def register_tool(tool_name: str) -> Callable[[ToolT], ToolT]:
    """Registers the decorated class under a name."""

    def register(tool_class: ToolT) -> ToolT:
        ToolFactory.register_tool(tool_name, tool_class)
        return tool_class

    return register


def as_result(tool_name: str, answer: Any) -> ToolResult:
    """Returns what a tool answered as a `ToolResult`; anything else than one is the output of a success."""
    if isinstance(answer, ToolResult):
        return answer
    return ToolResult(tool_name=tool_name, status=ExecutionStatus.SUCCESS, output=answer)


def _schema(parameters: Mapping[str, Any] | BaseModel | type[BaseModel] | None) -> dict[str, Any]:
    if parameters is None:
        return {"type": "object", "properties": {}}
    if isinstance(parameters, BaseModel):
        return parameters.model_dump(exclude_none=True)
    if isinstance(parameters, type):
        return parameters.model_json_schema()
    return dict(parameters)
