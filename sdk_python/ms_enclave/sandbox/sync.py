"""The documented classes for programs without an event loop: the same names, methods that block.

    from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType
    from ms_enclave.sandbox.sync import SandboxFactory

    with SandboxFactory.create_sandbox(SandboxType.DOCKER, DockerSandboxConfig(memory_limit="512m")) as sandbox:
        print(sandbox.execute_tool("python_executor", {"code": "print(40 + 2)"}).output)

There is no second implementation: every object holds one of `ms_enclave.sandbox` (``.wrapped``), whose coroutines run
on one background loop of the process. Objects may be used from any thread. Ctrl-C cancels what runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ms_enclave._model import (
    Event,
    ExecutionOptions,
    SandboxConfig,
    SandboxEvent,
    SandboxFilter,
    SandboxInfo,
    SandboxManagerConfig,
    SandboxManagerType,
    SandboxStatus,
    SandboxType,
)
from ms_enclave._model.pools import PoolClaim
from ms_enclave.sandbox import boxes, manager
from ms_enclave.sandbox._blocking import Blocking, Face, iterate
from ms_enclave.sandbox._portal import process_portal
from ms_enclave.sandbox._sync_executions import Context, Contexts, Execution
from ms_enclave.sandbox._sync_files import Files
from ms_enclave.sandbox.tools import Tool

__all__ = [
    "Context",
    "Contexts",
    "Execution",
    "Files",
    "HttpSandboxManager",
    "LocalSandboxManager",
    "Sandbox",
    "SandboxFactory",
    "SandboxManager",
    "SandboxManagerFactory",
]


class Sandbox(Face[boxes.Sandbox]):
    """One isolated environment; see `ms_enclave.sandbox.boxes.Sandbox`. ``with`` starts and stops it."""

    start = Blocking(boxes.Sandbox.start)
    stop = Blocking(boxes.Sandbox.stop)
    pause = Blocking(boxes.Sandbox.pause)
    resume = Blocking(boxes.Sandbox.resume)
    update = Blocking(boxes.Sandbox.update)
    history = Blocking(boxes.Sandbox.history)
    cleanup = Blocking(boxes.Sandbox.cleanup)
    execute_tool = Blocking(boxes.Sandbox.execute_tool)
    execute_command = Blocking(boxes.Sandbox.execute_command)
    run_tool = Blocking(boxes.Sandbox.run_tool)
    put_file = Blocking(boxes.Sandbox.put_file)
    put_dir = Blocking(boxes.Sandbox.put_dir)
    put_archive = Blocking(boxes.Sandbox.put_archive)
    read_file = Blocking(boxes.Sandbox.read_file)
    refresh = Blocking(boxes.Sandbox.refresh)
    list_executions = Blocking(boxes.Sandbox.list_executions)
    get_execution_context = Blocking(boxes.Sandbox.get_execution_context)
    initialize_tools = Blocking(boxes.Sandbox.initialize_tools)

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

    @property
    def contexts(self) -> Contexts:
        """Its persistent interpreters: ``open``, ``list``, ``close``, ``reset``."""
        return Contexts(self.wrapped.contexts)

    @property
    def files(self) -> Files:
        """Its files: ``read``, ``write``, ``list``, ``search``, ``watch`` and others."""
        return Files(self.wrapped.files)

    def stream(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        options: ExecutionOptions | None = None,
        **given: Any,
    ) -> Iterator[Event]:
        """Runs a tool and yields what happens while it happens.

        Leaving the loop early kills what runs, unless it is detached.
        """
        return iterate(self.wrapped.stream(tool_name, parameters, options=options, **given))

    def start_execution(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        options: ExecutionOptions | None = None,
        **given: Any,
    ) -> Execution:
        """Starts a tool and returns as soon as it is accepted."""
        starting = self.wrapped.start_execution(tool_name, parameters, options=options, **given)
        return Execution(process_portal().run(starting))

    def get_execution(self, execution_id: str) -> Execution:
        """Returns an execution that runs or ended in the last 60 s, whoever started it."""
        return Execution(process_portal().run(self.wrapped.get_execution(execution_id)))

    @classmethod
    def connect(cls, sandbox_id: str, *, address: str | None = None, token: str | None = None) -> Sandbox:
        """Returns an object for a sandbox that exists; see `ms_enclave.sandbox.boxes.DockerSandbox.connect`."""
        return cls(process_portal().run(boxes.DockerSandbox.connect(sandbox_id, address=address, token=token)))


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


class SandboxManager(Face[manager.SandboxManager]):
    """Keeps many sandboxes by id; see `ms_enclave.sandbox.manager.SandboxManager`."""

    start = Blocking(manager.SandboxManager.start)
    stop = Blocking(manager.SandboxManager.stop)
    create_sandbox = Blocking(manager.SandboxManager.create_sandbox)
    get_sandbox_info = Blocking(manager.SandboxManager.get_sandbox_info)
    list_sandboxes = Blocking(manager.SandboxManager.list_sandboxes)
    find_sandboxes = Blocking(manager.SandboxManager.find_sandboxes)
    stop_sandbox = Blocking(manager.SandboxManager.stop_sandbox)
    delete_sandbox = Blocking(manager.SandboxManager.delete_sandbox)
    cleanup_all_sandboxes = Blocking(manager.SandboxManager.cleanup_all_sandboxes)
    get_stats = Blocking(manager.SandboxManager.get_stats)
    execute_tool = Blocking(manager.SandboxManager.execute_tool)
    get_sandbox_tools = Blocking(manager.SandboxManager.get_sandbox_tools)
    put_file = Blocking(manager.SandboxManager.put_file)
    put_dir = Blocking(manager.SandboxManager.put_dir)
    put_archive = Blocking(manager.SandboxManager.put_archive)
    initialize_pool = Blocking(manager.SandboxManager.initialize_pool)
    execute_tool_in_pool = Blocking(manager.SandboxManager.execute_tool_in_pool)
    pool_stats = Blocking(manager.SandboxManager.pool_stats)

    @property
    def config(self) -> SandboxManagerConfig:
        """How it is set up."""
        return self.wrapped.config

    def watch_sandboxes(
        self, wanted: SandboxFilter | None = None, revision: int = 0, *, heartbeat_s: float = 0.0
    ) -> Iterator[SandboxEvent]:
        """Yields every change of sandboxes; see `ms_enclave.sandbox.manager.SandboxManager.watch_sandboxes`."""
        return iterate(self.wrapped.watch_sandboxes(wanted, revision, heartbeat_s=heartbeat_s))

    def claim(
        self, claim: PoolClaim | None = None, *, pool_id: str | None = None, timeout: float | None = None
    ) -> Sandbox:
        """Takes a sandbox out of the pool; see `ms_enclave.sandbox.manager.SandboxManager.claim`."""
        return Sandbox(process_portal().run(self.wrapped.claim(claim, pool_id=pool_id, timeout=timeout)))

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
