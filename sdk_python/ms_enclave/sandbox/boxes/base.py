"""What a sandbox is to its user, whatever it is made of, and the factory that makes one by type."""

from __future__ import annotations

import abc
import os
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from ms_enclave._model import (
    CommandResult,
    DockerNotebookConfig,
    DockerSandboxConfig,
    Event,
    ExecutionInfo,
    ExecutionOptions,
    SandboxConfig,
    SandboxInfo,
    SandboxStatus,
    SandboxType,
    StateChange,
    ToolResult,
)
from ms_enclave._transports.base import Transport
from ms_enclave.errors import InvalidRequest, NotServed, ToolNotFound, WrongState
from ms_enclave.sandbox.contexts import Contexts
from ms_enclave.sandbox.executions import Execution
from ms_enclave.sandbox.files import Files
from ms_enclave.sandbox.tools.base import Tool, ToolFactory, as_result
from ms_enclave.sandbox.tools.sandbox_tools import SandboxTool

SandboxT = TypeVar("SandboxT", bound="type[Sandbox]")

_CONFIGS: Mapping[SandboxType, type[SandboxConfig]] = {
    SandboxType.DOCKER: DockerSandboxConfig,
    SandboxType.DOCKER_NOTEBOOK: DockerNotebookConfig,
}


class Sandbox(abc.ABC):
    """One isolated environment. Derive from it, with `register_sandbox`, for kinds of your own.

    May be started in one event loop, used in another and stopped in a third. ``async with`` starts and stops it.
    """

    served: ClassVar[bool] = True
    """False for documented types that this version cannot make."""

    def __init__(self, config: SandboxConfig, sandbox_id: str | None = None) -> None:
        """``sandbox_id``: lower-case letters, digits, ``_`` and ``-``; made up if not given."""
        self.id = sandbox_id or uuid.uuid4().hex[:16]
        self.config = config
        self.status = SandboxStatus.INITIALIZING
        self.created_at = datetime.now()
        self.updated_at = self.created_at
        self.metadata: dict[str, Any] = {}
        self._tools: dict[str, Tool] = {}
        self._aliases: dict[str, str] = {}
        self._replaceable: set[str] = set()
        """Tools that are there although nobody asked for them by name, so that `add_tool` may still do so."""

    @property
    @abc.abstractmethod
    def sandbox_type(self) -> SandboxType:
        """What kind of environment it is."""

    # -- life ----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def start(self) -> None:
        """Makes it ready to run tools. Does nothing if it is."""

    @abc.abstractmethod
    async def stop(self) -> None:
        """Ends everything that runs in it, at once. Does nothing if nothing does."""

    async def pause(self) -> None:
        """Freezes everything in it where it is. Does nothing if it is paused. Memory and files stay.

        Timeouts of executions stand still; the time to live goes on. Raises `WrongState` if it does not run.
        """
        raise NotServed(f"sandboxes of type {self.sandbox_type.value} cannot be paused")

    async def resume(self) -> None:
        """Lets it go on after `pause`. Does nothing if it runs. Raises `WrongState` if it was stopped."""
        raise NotServed(f"sandboxes of type {self.sandbox_type.value} cannot be paused")

    async def update(
        self,
        *,
        ttl: float | None = None,
        labels: Mapping[str, str] | None = None,
        memory_limit: str | None = None,
        cpu_limit: float | None = None,
        pids_limit: int | None = None,
        idle_timeout: float | None = None,
    ) -> None:
        """Changes it while it lives: all that is asked for, or nothing. What is ``None`` stays.

        ``ttl``: seconds to live from now on. ``idle_timeout``: seconds without use until it is removed (0: never).
        ``labels``: all that it is to have. ``memory_limit``: as in the configuration. Raises `PolicyDenied`,
        `InvalidRequest`, `WrongState`, `EngineRefused`.
        """
        raise NotServed(f"sandboxes of type {self.sandbox_type.value} cannot be changed")

    async def history(self) -> list[StateChange]:
        """Returns the last 100 changes of its state, oldest first, with reasons and causes.

        Raises `SandboxNotFound` if it is gone.
        """
        raise NotServed(f"sandboxes of type {self.sandbox_type.value} have no history")

    @abc.abstractmethod
    async def cleanup(self) -> None:
        """Removes it with everything in it. Does nothing if it is gone."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        await self.cleanup()

    def update_status(self, status: SandboxStatus) -> None:
        """Records a change of state."""
        self.status = status
        self.updated_at = datetime.now()

    def get_info(self) -> SandboxInfo:
        """Describes it as last seen."""
        return SandboxInfo(
            id=self.id,
            status=self.status,
            type=self.sandbox_type,
            config=self.config.model_dump(exclude_none=True),
            created_at=self.created_at,
            updated_at=self.updated_at,
            metadata=dict(self.metadata),
            available_tools=self.get_available_tools(),
        )

    async def refresh(self) -> SandboxInfo:
        """Looks how it is now, and describes it. Raises `SandboxNotFound` if it is gone."""
        return self.get_info()

    # -- tools ---------------------------------------------------------------------------------------------------

    def get_available_tools(self) -> dict[str, Any]:
        """Returns the tools that can be used: name -> schema in the form of OpenAI's function calling.

        Those of the daemon are known once the sandbox was started.
        """
        return {name: tool.schema for name, tool in self._tools.items() if tool.enabled}

    def list_tools(self) -> list[str]:
        """Lists the names of the tools that can be used."""
        return list(self.get_available_tools())

    def get_tool(self, tool_name: str) -> Tool | None:
        """Returns a tool by name or alias, or ``None``."""
        return self._tools.get(self._aliases.get(tool_name, tool_name))

    def add_tool(self, tool: Tool) -> None:
        """Adds a tool. One of your own runs in your process, against this sandbox.

        Raises ``ValueError`` if it is disabled, cannot work with this type of sandbox, or has the name of another.
        """
        if not tool.enabled:
            raise InvalidRequest(f"Tool {tool.name} is not enabled and cannot be added")
        if not tool.is_compatible_with_sandbox(self.sandbox_type):
            needed = ", ".join(one.value for one in tool.required_sandbox_types or [])
            raise InvalidRequest(
                f"Tool {tool.name} requires a sandbox of type {needed}, and this one is {self.sandbox_type.value}"
            )
        if tool.name in self._tools and tool.name not in self._replaceable:
            raise InvalidRequest(f"Tool {tool.name} is already added to the sandbox")
        self._tools[tool.name] = tool
        self._replaceable.discard(tool.name)

    async def initialize_tools(self) -> None:
        """Makes the tools that ``tools_config`` names and this process knows. For sandboxes of your own kind."""
        for name, options in self.config.tools_config.items():
            tool = ToolFactory.create_tool(name, **options)
            if tool.enabled and tool.is_compatible_with_sandbox(self.sandbox_type):
                self._tools[name] = tool

    async def execute_tool(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        options: ExecutionOptions | None = None,
    ) -> ToolResult:
        """Runs a tool to its end. A program that fails is a result; ``result.status`` and ``result.error`` say how.

        ``options`` say how one of the daemon's tools is run (its context, its input, its limits). Cancelling the
        calling task kills what runs. Raises ``ValueError`` (`ToolNotFound`, `InvalidRequest`, `WrongState`) for a
        tool that is unknown or disabled, for unknown or ill-typed parameters, and if the sandbox does not run.
        """
        tool = self.get_tool(tool_name)
        if tool is None or not tool.enabled:
            raise self._no_tool(tool_name)
        given = {} if parameters is None else parameters
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise InvalidRequest("parameters: must be a dictionary of names and values")
        if options is None:
            result = as_result(tool_name, await tool.execute(self, **given))
        elif isinstance(tool, SandboxTool):
            result = await tool.execute_with(self, options, **given)
        else:
            raise InvalidRequest(f"options: tool {tool_name} runs in your process, which takes none")
        result.tool_name = tool_name
        return result

    def _no_tool(self, tool_name: str) -> Exception:
        if self.status in (SandboxStatus.INITIALIZING, SandboxStatus.STOPPED, SandboxStatus.STOPPING):
            return self._not_running()
        available = ", ".join(self.list_tools()) or "none"
        return ToolNotFound(f"Tool {tool_name} is not available in sandbox {self.id}; available: {available}")

    def _not_running(self) -> WrongState:
        return WrongState(f"Sandbox {self.id} is not active (status: {self.status}); call start() first")

    async def run_tool(
        self, tool_name: str, parameters: Mapping[str, Any], *, options: ExecutionOptions | None = None
    ) -> ToolResult:
        """Runs one of the daemon's tools in this sandbox. Only kinds of sandboxes that have a daemon can.

        Raises `ToolNotFound`.
        """
        raise ToolNotFound(f"sandboxes of type {self.sandbox_type.value} run no tool of a daemon, such as {tool_name}")

    async def execute_command(
        self, command: str | list[str], timeout: float | None = None, stream: bool = True
    ) -> CommandResult:
        """Runs a command: a string through a shell, a list as a program with its arguments.

        ``timeout`` in seconds: ``None`` for the sandbox's, 0 for none (the longest that the policy allows).
        ``stream`` is accepted and changes nothing: the result is the whole output.
        """
        raise NotServed(f"sandboxes of type {self.sandbox_type.value} run no commands")

    # -- executions ----------------------------------------------------------------------------------------------

    @property
    def contexts(self) -> Contexts:
        """Its persistent interpreters: ``open``, ``list``, ``close``, ``reset``."""
        return Contexts(self)

    @property
    def files(self) -> Files:
        """Its files: ``read``, ``write``, ``list``, ``search``, ``watch`` and others."""
        return Files(self)

    async def transport(self) -> Transport | None:
        """Returns the way to the daemon that keeps it; ``None`` for kinds that have none. Raises `WrongState`."""
        return None

    def stream(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        options: ExecutionOptions | None = None,
        **given: Any,
    ) -> AsyncGenerator[Event, None]:
        """Runs a tool and yields what happens while it happens, ending with `Finished`.

        The parameters of the tool come as one mapping or as keywords: ``stream("python_executor", code="print(1)")``.
        """
        raise NotServed(f"sandboxes of type {self.sandbox_type.value} show nothing while a tool runs")

    async def start_execution(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        options: ExecutionOptions | None = None,
        **given: Any,
    ) -> Execution:
        """Starts a tool and returns as soon as it is accepted. Parameters as for `stream`.

        Cancelling the calling task meanwhile kills what was started, unless it is detached.
        """
        raise NotServed(f"sandboxes of type {self.sandbox_type.value} start nothing to come back to")

    async def get_execution(self, execution_id: str) -> Execution:
        """Returns an execution that runs or ended in the last 60 s, whoever started it.

        Following it takes the place of the client that started it. Raises `ExecutionNotFound`.
        """
        raise NotServed(f"sandboxes of type {self.sandbox_type.value} have no executions to come back to")

    async def list_executions(self, *, running: bool | None = None) -> list[ExecutionInfo]:
        """Lists the executions that run or ended in the last 60 s, oldest first.

        ``running``: only those that run (True) or have ended (False).
        """
        raise NotServed(f"sandboxes of type {self.sandbox_type.value} have no executions to list")

    # -- files ---------------------------------------------------------------------------------------------------

    async def read_file(self, path: str) -> bytes:
        """Reads a file."""
        raise self._no_files()

    async def put_file(self, path: str, text: str | bytes, encoding: str = "utf-8") -> None:
        """Writes a file, with missing directories above it."""
        raise self._no_files()

    async def put_dir(self, source: str | os.PathLike[str], target: str) -> None:
        """Copies a directory of this machine, with everything below it, into ``target``."""
        raise self._no_files()

    async def put_archive(self, target: str, tar_bytes: bytes) -> None:
        """Unpacks a tar archive into ``target``."""
        raise self._no_files()

    def _no_files(self) -> NotServed:
        return NotServed(f"sandboxes of type {self.sandbox_type.value} have no files to read or write")

    @abc.abstractmethod
    async def get_execution_context(self) -> Any:
        """Returns what tools of this kind of sandbox work with."""


class SandboxFactory:
    """Makes sandboxes by type."""

    _classes: ClassVar[dict[SandboxType, type[Sandbox]]] = {}

    @classmethod
    def register_sandbox(cls, sandbox_type: SandboxType, sandbox_class: type[Sandbox]) -> None:
        """Makes a class known for a type, in place of any that was."""
        cls._classes[sandbox_type] = sandbox_class

    @classmethod
    def create_sandbox(
        cls,
        sandbox_type: SandboxType | str,
        config: SandboxConfig | Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> Sandbox:
        """Makes a sandbox object. Nothing is started until `Sandbox.start`, or ``async with``.

        ``config`` is a model, a dictionary or nothing. In a dictionary, a value equal to its documented default
        counts as not set. Raises ``ValueError`` for an unknown type or a malformed configuration, `NotServed` for a
        type that this version cannot make.
        """
        kind = sandbox_type_of(sandbox_type)
        sandbox_class = cls._classes.get(kind)
        if sandbox_class is None:
            available = ", ".join(one.value for one in cls.get_available_types())
            raise InvalidRequest(f"Sandbox type {kind.value} is not registered; available: {available}")
        return sandbox_class(cls._config(kind, config), sandbox_id)

    @classmethod
    def get_available_types(cls) -> list[SandboxType]:
        """Lists the types that can be made."""
        return [kind for kind, sandbox_class in cls._classes.items() if sandbox_class.served]

    @classmethod
    def _config(cls, kind: SandboxType, config: SandboxConfig | Mapping[str, Any] | None) -> SandboxConfig:
        model = _CONFIGS.get(kind, SandboxConfig)
        if config is None:
            return model()
        if isinstance(config, Mapping):
            return model.from_dict(config)
        if isinstance(config, model) or model is SandboxConfig:
            return config
        if isinstance(config, SandboxConfig):
            return model.model_validate(config.model_dump(exclude_unset=True))
        raise InvalidRequest(f"config: must be a {model.__name__} or a dictionary, not {type(config).__name__}")


def register_sandbox(sandbox_type: SandboxType) -> Callable[[SandboxT], SandboxT]:
    """Registers the decorated class for a type."""

    def register(sandbox_class: SandboxT) -> SandboxT:
        SandboxFactory.register_sandbox(sandbox_type, sandbox_class)
        return sandbox_class

    return register


def sandbox_type_of(value: SandboxType | str) -> SandboxType:
    """Reads a type. Raises `InvalidRequest` listing those there are."""
    try:
        return SandboxType(value)
    except ValueError:
        known = ", ".join(repr(one.value) for one in SandboxType)
        raise InvalidRequest(f"sandbox_type: {value!r} is none of {known}") from None
