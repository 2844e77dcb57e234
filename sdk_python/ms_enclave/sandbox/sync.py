"""The documented classes for programs without an event loop: the same names, methods that block.

    from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType
    from ms_enclave.sandbox.sync import SandboxFactory

    with SandboxFactory.create_sandbox(SandboxType.DOCKER, DockerSandboxConfig(memory_limit="512m")) as sandbox:
        print(sandbox.execute_tool("python_executor", {"code": "print(40 + 2)"}).output)

There is no second implementation: every object holds one of `ms_enclave.sandbox` (``.wrapped``), whose coroutines run
on one background loop of the process. Objects may be used from any thread. Ctrl-C cancels what runs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from ms_enclave._model import (
    Event,
    SandboxConfig,
    SandboxInfo,
    SandboxManagerConfig,
    SandboxManagerType,
    SandboxStatus,
    SandboxType,
)
from ms_enclave.sandbox import boxes, manager
from ms_enclave.sandbox._portal import process_portal
from ms_enclave.sandbox.tools import Tool

__all__ = [
    "HttpSandboxManager",
    "LocalSandboxManager",
    "Sandbox",
    "SandboxFactory",
    "SandboxManager",
    "SandboxManagerFactory",
]

P = ParamSpec("P")
R = TypeVar("R")


class _Blocking(Generic[P, R]):
    """A method that blocks where the wrapped object's method of the same name is a coroutine."""

    def __init__(self, method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: _Face[Any], owner: type) -> Callable[P, R]: ...
    def __get__(self, instance: _Face[Any] | None, owner: type) -> Self | Callable[P, R]:
        if instance is None:
            return self
        method = getattr(instance.wrapped, self._method.__name__)

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            result: R = process_portal().run(method(*args, **kwargs))
            return result

        call.__name__, call.__doc__ = self._method.__name__, self._method.__doc__
        return call


WrappedT = TypeVar("WrappedT", bound="boxes.Sandbox | manager.SandboxManager")


class _Face(Generic[WrappedT]):
    """The blocking face of one object."""

    def __init__(self, wrapped: WrappedT) -> None:
        self.wrapped = wrapped

    def __enter__(self) -> Self:
        process_portal().run(self.wrapped.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process_portal().run(self.wrapped.__aexit__(kind, error, trace))


class Sandbox(_Face[boxes.Sandbox]):
    """One isolated environment; see `ms_enclave.sandbox.boxes.Sandbox`. ``with`` starts and stops it."""

    start = _Blocking(boxes.Sandbox.start)
    stop = _Blocking(boxes.Sandbox.stop)
    cleanup = _Blocking(boxes.Sandbox.cleanup)
    execute_tool = _Blocking(boxes.Sandbox.execute_tool)
    execute_command = _Blocking(boxes.Sandbox.execute_command)
    run_tool = _Blocking(boxes.Sandbox.run_tool)
    put_file = _Blocking(boxes.Sandbox.put_file)
    put_dir = _Blocking(boxes.Sandbox.put_dir)
    put_archive = _Blocking(boxes.Sandbox.put_archive)
    read_file = _Blocking(boxes.Sandbox.read_file)
    refresh = _Blocking(boxes.Sandbox.refresh)
    get_execution_context = _Blocking(boxes.Sandbox.get_execution_context)
    initialize_tools = _Blocking(boxes.Sandbox.initialize_tools)

    @property
    def id(self) -> str:
        """Its id."""
        return self.wrapped.id

    @property
    def config(self) -> SandboxConfig:
        """What was asked for."""
        return self.wrapped.config

    @property
    def status(self) -> SandboxStatus:
        """Where it is in its life, as last seen."""
        return self.wrapped.status

    @property
    def sandbox_type(self) -> SandboxType:
        """What kind of environment it is."""
        return self.wrapped.sandbox_type

    @property
    def metadata(self) -> dict[str, Any]:
        """What else is known about it."""
        return self.wrapped.metadata

    def get_info(self) -> SandboxInfo:
        """Describes it as last seen."""
        return self.wrapped.get_info()

    def get_available_tools(self) -> dict[str, Any]:
        """Returns the tools that can be used: name -> schema."""
        return self.wrapped.get_available_tools()

    def list_tools(self) -> list[str]:
        """Lists the names of the tools that can be used."""
        return self.wrapped.list_tools()

    def get_tool(self, tool_name: str) -> Tool | None:
        """Returns a tool by name or alias, or ``None``."""
        return self.wrapped.get_tool(tool_name)

    def add_tool(self, tool: Tool) -> None:
        """Adds a tool. Its ``execute`` is a coroutine that gets the async sandbox."""
        self.wrapped.add_tool(tool)

    def stream(self, tool_name: str, parameters: Mapping[str, Any] | None = None) -> Iterator[Event]:
        """Runs a tool and yields what happens while it happens. Leaving the loop early kills what runs."""
        return _iterate(self.wrapped.stream(tool_name, parameters))


class SandboxFactory:
    """Makes sandboxes by type; see `ms_enclave.sandbox.boxes.SandboxFactory`."""

    register_sandbox = boxes.SandboxFactory.register_sandbox
    get_available_types = boxes.SandboxFactory.get_available_types

    @staticmethod
    def create_sandbox(
        sandbox_type: SandboxType | str,
        config: SandboxConfig | Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> Sandbox:
        """Makes a sandbox object; nothing is started until ``start``, or ``with``."""
        return Sandbox(boxes.SandboxFactory.create_sandbox(sandbox_type, config, sandbox_id))


class SandboxManager(_Face[manager.SandboxManager]):
    """Keeps many sandboxes by id; see `ms_enclave.sandbox.manager.SandboxManager`."""

    start = _Blocking(manager.SandboxManager.start)
    stop = _Blocking(manager.SandboxManager.stop)
    create_sandbox = _Blocking(manager.SandboxManager.create_sandbox)
    get_sandbox_info = _Blocking(manager.SandboxManager.get_sandbox_info)
    list_sandboxes = _Blocking(manager.SandboxManager.list_sandboxes)
    stop_sandbox = _Blocking(manager.SandboxManager.stop_sandbox)
    delete_sandbox = _Blocking(manager.SandboxManager.delete_sandbox)
    cleanup_all_sandboxes = _Blocking(manager.SandboxManager.cleanup_all_sandboxes)
    get_stats = _Blocking(manager.SandboxManager.get_stats)
    execute_tool = _Blocking(manager.SandboxManager.execute_tool)
    get_sandbox_tools = _Blocking(manager.SandboxManager.get_sandbox_tools)
    put_file = _Blocking(manager.SandboxManager.put_file)
    put_dir = _Blocking(manager.SandboxManager.put_dir)
    put_archive = _Blocking(manager.SandboxManager.put_archive)
    initialize_pool = _Blocking(manager.SandboxManager.initialize_pool)
    execute_tool_in_pool = _Blocking(manager.SandboxManager.execute_tool_in_pool)

    @property
    def config(self) -> SandboxManagerConfig:
        """How it is set up."""
        return self.wrapped.config

    def get_sandbox(self, sandbox_id: str) -> Sandbox | None:
        """Returns a sandbox that this manager made, or ``None``."""
        found = process_portal().run(self.wrapped.get_sandbox(sandbox_id))
        return None if found is None else Sandbox(found)


class LocalSandboxManager(SandboxManager):
    """Keeps sandboxes at the daemon that it finds or starts; see `ms_enclave.sandbox.manager.LocalSandboxManager`."""

    def __init__(
        self,
        config: SandboxManagerConfig | Mapping[str, Any] | None = None,
        *,
        address: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(manager.LocalSandboxManager(config, address=address, **settings))


class HttpSandboxManager(SandboxManager):
    """Keeps sandboxes at an HTTP server; see `ms_enclave.sandbox.manager.HttpSandboxManager`."""

    def __init__(self, config: SandboxManagerConfig | Mapping[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(manager.HttpSandboxManager(config, **settings))


class SandboxManagerFactory:
    """Makes managers by type; see `ms_enclave.sandbox.manager.SandboxManagerFactory`."""

    register = manager.SandboxManagerFactory.register
    get_registered_types = manager.SandboxManagerFactory.get_registered_types

    @staticmethod
    def create_manager(
        manager_type: SandboxManagerType | str | None = None,
        config: SandboxManagerConfig | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> SandboxManager:
        """Makes a manager; a ``base_url`` means HTTP and anything else a local one."""
        return SandboxManager(manager.SandboxManagerFactory.create_manager(manager_type, config, **settings))


def _iterate(events: AsyncGenerator[Event, None]) -> Iterator[Event]:
    portal = process_portal()
    try:
        while True:
            try:
                yield portal.run(anext(events))
            except StopAsyncIteration:
                return
    finally:
        portal.run(events.aclose())
