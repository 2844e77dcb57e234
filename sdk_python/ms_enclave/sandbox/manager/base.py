"""Keeps many sandboxes by id. Written once: what differs between managers is the transport that they choose."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from ms_enclave._model import (
    SandboxConfig,
    SandboxInfo,
    SandboxManagerConfig,
    SandboxManagerType,
    SandboxStatus,
    SandboxType,
    ToolResult,
)
from ms_enclave._transports.base import ToolCall
from ms_enclave.errors import EnclaveError, InvalidRequest, SandboxExists, SandboxNotFound
from ms_enclave.sandbox.boxes.base import Sandbox, SandboxFactory
from ms_enclave.sandbox.boxes.docker import DockerSandbox
from ms_enclave.sandbox.manager._looking import Looking
from ms_enclave.sandbox.manager._pooling import MANAGER_LABEL, Pooling

CLEANUP_INTERVAL_S = 300
DELETIONS_AT_ONCE = 16

ManagerT = TypeVar("ManagerT", bound="type[SandboxManager]")


class SandboxManager(Looking, Pooling):
    """Makes sandboxes, finds them by id and removes what it made when it stops.

    May be started in one event loop, used in another and stopped in a third. ``async with`` starts and stops it.
    """

    manager_type: ClassVar[SandboxManagerType]

    def __init__(self, config: SandboxManagerConfig | Mapping[str, Any] | None = None, **settings: Any) -> None:
        """``settings`` are fields of `SandboxManagerConfig` (``cleanup_interval=600``) and go before ``config``.

        Raises ``ValueError`` for unknown fields and malformed values.
        """
        given = dict(config or {})
        if isinstance(config, SandboxManagerConfig):
            given = {name: value for name, value in given.items() if name in config.model_fields_set}
        self.config = SandboxManagerConfig.model_validate({**given, **settings})
        self._labels = {MANAGER_LABEL: uuid.uuid4().hex}
        self._listed: Mapping[str, str] = self._labels
        """The labels of what `list_sandboxes` lists."""
        self._sandboxes: dict[str, Sandbox] = {}
        """What it made and has not deleted."""
        self._running = False
        self._pool_initialized = False
        self._pool_ids: list[str] = []
        self._pool_config: SandboxConfig | None = None

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Finds its daemon. Raises `DaemonUnavailable`, `InvalidRequest`. Does nothing if it runs.

        If its settings have both ``pool_size`` and ``sandbox_config``, it makes the pool as well.
        """
        if not self._running:
            await (await self._connect()).health()
            if self.config.pool_size and self.config.sandbox_config is not None:
                await self.initialize_pool()
            self._running = True

    async def stop(self) -> None:
        """Removes every sandbox that it made, those of its pool too. Can be called twice."""
        await self.cleanup_all_sandboxes()
        self._running = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # -- sandboxes -----------------------------------------------------------------------------------------------

    async def create_sandbox(
        self,
        sandbox_type: SandboxType | str,
        config: SandboxConfig | Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> str:
        """Makes and starts a sandbox and returns its id.

        Raises ``ValueError`` for an unknown type or a malformed configuration, and what `DockerSandbox.start` raises.
        """
        sandbox = SandboxFactory.create_sandbox(sandbox_type, config, sandbox_id)
        if sandbox.id in self._sandboxes:
            raise SandboxExists(f"Sandbox {sandbox.id} exists already; choose another id or delete it first")
        if isinstance(sandbox, DockerSandbox):
            sandbox.use(await self._connect(), self._labels)
        wanted_id = sandbox.id
        self._sandboxes[wanted_id] = sandbox
        try:
            await sandbox.start()
        except BaseException:
            del self._sandboxes[wanted_id]
            raise
        if sandbox.id != wanted_id:  # the server chose
            self._sandboxes[sandbox.id] = self._sandboxes.pop(wanted_id)
        return sandbox.id

    async def get_sandbox(self, sandbox_id: str) -> Sandbox | None:
        """Returns a sandbox that this manager made, or ``None``."""
        if sandbox_id in self._pool_ids:
            try:
                return await self._reached(sandbox_id)
            except SandboxNotFound:
                return None
        return self._sandboxes.get(sandbox_id)

    async def get_sandbox_info(self, sandbox_id: str) -> SandboxInfo | None:
        """Asks the daemon how a sandbox is. ``None`` if there is none of this id."""
        sandbox = self._sandboxes.get(sandbox_id)
        try:
            if sandbox is None:
                sandbox = await DockerSandbox.attach(await self._connect(), sandbox_id)
            return await sandbox.refresh()
        except SandboxNotFound:
            return None

    async def list_sandboxes(self, status_filter: SandboxStatus | str | None = None) -> list[SandboxInfo]:
        """Lists the sandboxes that this manager made and has not deleted, oldest first.

        ``status_filter``: only those that are in this state.
        """
        wanted = None if status_filter is None else SandboxStatus(status_filter)
        found = await self._infos()
        return [info for info in found if wanted is None or info.status is wanted]

    async def stop_sandbox(self, sandbox_id: str) -> bool:
        """Stops a sandbox at once; its record stays until it is deleted. False if there is none of this id."""
        sandbox = self._sandboxes.get(sandbox_id)
        try:
            if sandbox is None:
                await (await self._connect()).stop_sandbox(sandbox_id)
            else:
                await sandbox.stop()
        except SandboxNotFound:
            return False
        return True

    async def delete_sandbox(self, sandbox_id: str, *, wait: bool = True) -> bool:
        """Removes a sandbox with everything in it. False if there is none of this id.

        Without ``wait`` this returns as soon as that is certain; container and files are gone a little later.
        """
        sandbox = self._sandboxes.get(sandbox_id)
        try:
            if sandbox is None or (isinstance(sandbox, DockerSandbox) and not wait):
                await (await self._connect()).delete_sandbox(sandbox_id, wait=wait)
            else:
                await sandbox.cleanup()
        except SandboxNotFound:
            return False
        self._sandboxes.pop(sandbox_id, None)
        return True

    async def cleanup_all_sandboxes(self) -> None:
        """Removes every sandbox that it made. Tries all of them, then raises the first error there was."""
        await self._delete_pool()
        slots = asyncio.Semaphore(DELETIONS_AT_ONCE)

        async def delete(sandbox_id: str) -> EnclaveError | None:
            async with slots:
                try:
                    await self.delete_sandbox(sandbox_id)
                except EnclaveError as error:
                    return error
                return None

        failures = [error for error in await asyncio.gather(*map(delete, list(self._sandboxes))) if error is not None]
        if failures:
            raise failures[0]

    async def get_stats(self) -> dict[str, Any]:
        """Counts the sandboxes that `list_sandboxes` lists, by status and type, and says how the manager is set up."""
        infos = await self._infos()
        return {
            "manager_type": self.manager_type.value,
            "total_sandboxes": len(infos),
            "status_counts": dict(Counter(info.status.value for info in infos)),
            "sandbox_types": dict(Counter(info.type.value for info in infos)),
            "running": self._running,
            "cleanup_interval": self.config.cleanup_interval or CLEANUP_INTERVAL_S,
            "pool_size": len(self._pool_ids),
            "pool_enabled": self.config.pool_size > 0,
            "pool_initialized": self._pool_initialized,
        }

    # -- what happens in them ------------------------------------------------------------------------------------

    async def execute_tool(
        self, sandbox_id: str, tool_name: str, parameters: Mapping[str, Any] | None = None
    ) -> ToolResult:
        """Runs a tool in a sandbox, as `Sandbox.execute_tool`.

        Raises ``ValueError`` (`SandboxNotFound`, `ToolNotFound`, `InvalidRequest`, `WrongState`).
        """
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is not None:
            return await sandbox.execute_tool(tool_name, parameters)
        return await (await self._connect()).run(ToolCall(sandbox_id, tool_name, parameters or {}))

    async def get_sandbox_tools(self, sandbox_id: str) -> dict[str, Any]:
        """Returns the tools of a sandbox: name -> schema. Raises `SandboxNotFound` (a ``ValueError``)."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is not None:
            return sandbox.get_available_tools()
        return {tool.name: dict(tool.schema) for tool in await (await self._connect()).list_tools(sandbox_id)}

    async def put_file(self, sandbox_id: str, path: str, text: str | bytes, encoding: str = "utf-8") -> None:
        """Writes a file into a sandbox, as `DockerSandbox.put_file`."""
        await (await self._reached(sandbox_id)).put_file(path, text, encoding)

    async def put_dir(self, sandbox_id: str, source: str | os.PathLike[str], target: str) -> None:
        """Copies a directory into a sandbox, as `DockerSandbox.put_dir`."""
        await (await self._reached(sandbox_id)).put_dir(source, target)

    async def put_archive(self, sandbox_id: str, target: str, tar_bytes: bytes) -> None:
        """Unpacks a tar archive into a sandbox, as `DockerSandbox.put_archive`."""
        await (await self._reached(sandbox_id)).put_archive(target, tar_bytes)

    # -- inside --------------------------------------------------------------------------------------------------

    async def _reached(self, sandbox_id: str) -> Sandbox:
        """Returns the object of a sandbox; a fresh one if somebody else made it. Raises `SandboxNotFound`."""
        own = self._sandboxes.get(sandbox_id)
        if own is not None:
            return own
        return await DockerSandbox.attach(await self._connect(), sandbox_id)

    async def _infos(self) -> list[SandboxInfo]:
        kept = {info.id: info for info in await (await self._connect()).list_sandboxes(self._listed)}
        for member in kept.values():
            if member.id in self._pool_ids and member.status is SandboxStatus.RUNNING:
                busy = member.metadata.get("active_executions")
                member.status = SandboxStatus.BUSY if busy else SandboxStatus.IDLE
        found = []
        for sandbox in list(self._sandboxes.values()):
            if isinstance(sandbox, DockerSandbox):
                info = kept.pop(sandbox.id, None)
                if info is None:
                    continue  # its time was over, or somebody else deleted it
                sandbox.saw(info)
            found.append(sandbox.get_info())
        return sorted([*kept.values(), *found], key=lambda info: info.created_at)


class SandboxManagerFactory:
    """Makes managers by type."""

    _classes: ClassVar[dict[SandboxManagerType, type[SandboxManager]]] = {}

    @classmethod
    def register(cls, manager_type: SandboxManagerType, manager_class: type[SandboxManager]) -> None:
        """Makes a class known for a type, in place of any that was."""
        cls._classes[manager_type] = manager_class

    @classmethod
    def create_manager(
        cls,
        manager_type: SandboxManagerType | str | None = None,
        config: SandboxManagerConfig | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> SandboxManager:
        """Makes a manager. Without a type, a ``base_url`` means HTTP and anything else a local one.

        ``settings`` are fields of `SandboxManagerConfig`, or arguments of the manager's class. Raises ``ValueError``
        for a type that is not registered.
        """
        if manager_type is None:
            base_url = {**dict(config or {}), **settings}.get("base_url")
            manager_type = SandboxManagerType.HTTP if base_url else SandboxManagerType.LOCAL
        found = next((made for one, made in cls._classes.items() if one.value == manager_type), None)
        if found is None:
            known = ", ".join(one.value for one in cls.get_registered_types())
            raise InvalidRequest(f"Sandbox manager type '{manager_type}' not registered; registered are {known}")
        return found(config=config, **settings)

    @classmethod
    def get_registered_types(cls) -> list[SandboxManagerType]:
        """Lists the types that can be made."""
        return list(cls._classes)


def register_manager(manager_type: SandboxManagerType) -> Callable[[ManagerT], ManagerT]:
    """Registers the decorated class for a type."""

    def register(manager_class: ManagerT) -> ManagerT:
        SandboxManagerFactory.register(manager_type, manager_class)
        return manager_class

    return register
