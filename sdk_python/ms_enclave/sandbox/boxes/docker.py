"""Sandboxes in containers, made and kept by a daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from ms_enclave import _results as results
from ms_enclave._local import process_daemons
from ms_enclave._model import (
    CommandResult,
    DockerSandboxConfig,
    ExecutionOptions,
    SandboxConfig,
    SandboxInfo,
    SandboxStatus,
    SandboxType,
    StateChange,
    ToolInfo,
    ToolResult,
    Verdict,
)
from ms_enclave._model.config import memory_bytes as as_bytes
from ms_enclave._transports.base import SandboxChange, SandboxPlan, Transport
from ms_enclave.errors import EnclaveError, InvalidRequest, NotServed, SandboxNotFound
from ms_enclave.sandbox import _directories as directories
from ms_enclave.sandbox import _uploads as uploads
from ms_enclave.sandbox._received import whole
from ms_enclave.sandbox.boxes.base import register_sandbox
from ms_enclave.sandbox.boxes.executing import ExecutingSandbox
from ms_enclave.sandbox.tools.base import Tool, ToolFactory
from ms_enclave.sandbox.tools.sandbox_tools import SandboxTool

COMMAND_TOOL = "command"
"""The daemon's own tool behind `Sandbox.execute_command`: there whatever tools a sandbox enables, and never listed."""
READ_FILE_BYTES_MAX = 1024**3


@dataclass(frozen=True, slots=True)
class ExecutionContext:
    """Where tools find the sandbox: the daemon's address and the sandbox's id there."""

    address: str
    sandbox_id: str
    working_dir: str


@register_sandbox(SandboxType.DOCKER)
class DockerSandbox(ExecutingSandbox):
    """A sandbox in a container of its own.

    Uses the daemon at ``MS_ENCLAVE_ADDRESS``, else the system's, else starts one for this process.
    """

    config: DockerSandboxConfig

    def __init__(self, config: SandboxConfig | None = None, sandbox_id: str | None = None) -> None:
        super().__init__(DockerSandboxConfig() if config is None else config, sandbox_id)
        self._transport: Transport | None = None
        self._labels: dict[str, str] = {}
        self._made = False
        """Whether the daemon has a record of it."""
        self._last_seen: SandboxInfo | None = None

    def use(self, transport: Transport, labels: Mapping[str, str]) -> None:
        """Says which daemon to use, instead of finding one at `start`, and under which labels."""
        self._transport = transport
        self._labels = dict(labels)

    @classmethod
    async def attach(cls, transport: Transport, sandbox_id: str) -> DockerSandbox:
        """Returns an object for a sandbox that somebody else made. Raises `SandboxNotFound`."""
        sandbox = cls(sandbox_id=sandbox_id)
        sandbox.use(transport, {})
        sandbox._made = True
        sandbox.saw(await transport.get_sandbox(sandbox_id))
        sandbox._know_tools(await transport.list_tools(sandbox_id))
        return sandbox

    @classmethod
    async def connect(cls, sandbox_id: str, *, address: str | None = None, token: str | None = None) -> DockerSandbox:
        """Returns an object for a sandbox that exists, whoever made it, such as to come back in another process.

        ``address``: its daemon (``unix:/path``, ``host:port`` or ``https://host:port``); ``None``: found as for others,
        but none is started. ``token``: who calls; not given, ``MS_ENCLAVE_TOKEN`` counts.
        Raises `SandboxNotFound`, `DaemonUnavailable`.
        """
        return await cls.attach(await process_daemons().connect(address, token=token, may_start=False), sandbox_id)

    @property
    def sandbox_type(self) -> SandboxType:
        return SandboxType.DOCKER

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Makes it and waits until it can run tools; after `stop`, starts it again under the same id.

        Raises `PolicyDenied`, `ImageNotFound`, `InvalidRequest`, `EngineUnavailable`, `DaemonUnavailable` and other
        classes of `ms_enclave.errors`, all of them ``RuntimeError``.
        """
        self.update_status(SandboxStatus.INITIALIZING)
        try:
            transport = await self._connected()
            self.saw(await self._start(transport))
            try:
                self._know_tools(await transport.list_tools(self.id))
            except (EnclaveError, asyncio.CancelledError):
                await self._remove_quietly(transport)
                raise
        except (EnclaveError, asyncio.CancelledError) as error:
            self.update_status(SandboxStatus.ERROR)
            self.metadata["error"] = str(error)
            raise

    def plan(self) -> SandboxPlan:
        """Says what the daemon is asked to make. Makes this process's own tools that the configuration names."""
        return SandboxPlan(self.id, self.config, self._wanted_tools(), self._labels)

    async def _start(self, transport: Transport) -> SandboxInfo:
        if self._made:
            with contextlib.suppress(SandboxNotFound):
                return await transport.start_sandbox(self.id)
        found = await transport.create_sandbox(self.plan())
        self._made = True
        self.id = found.id  # over HTTP the server may choose another
        return found

    async def stop(self) -> None:
        """Kills everything in it at once. With ``remove_on_exit`` (the default) the container and its files go too.

        `start` goes on under the same id: with its files if ``remove_on_exit`` was False, otherwise empty.
        """
        if self._made and self._transport is not None:
            self.update_status(SandboxStatus.STOPPING)
            try:
                self.saw(await self._transport.stop_sandbox(self.id))
            except SandboxNotFound:
                self._made = False
        self.update_status(SandboxStatus.STOPPED)

    async def pause(self) -> None:
        """Freezes everything in it where it is. Does nothing if it is paused. Memory and files stay.

        Its status is `SandboxStatus.IDLE` then, and ``metadata["paused"]`` of its description is True. Timeouts of
        executions stand still; the time to live goes on. With ``auto_resume`` its next use resumes it; otherwise that
        raises `WrongState`, as does this if it does not run.
        """
        self.saw(await (await self.running_transport()).lifecycle.pause(self.id))

    async def resume(self) -> None:
        """Lets it go on after `pause`. Does nothing if it runs. Raises `WrongState` if it was stopped."""
        self.saw(await (await self.running_transport()).lifecycle.resume(self.id))

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
        try:
            memory_bytes = None if memory_limit is None else as_bytes(memory_limit)
        except ValueError as error:
            raise InvalidRequest(f"memory_limit: {error}") from None
        transport = await self._running()
        change = SandboxChange(ttl, labels, memory_bytes, cpu_limit, pids_limit, idle_timeout)
        if isinstance(labels, Mapping):  # those that say who made it stay
            kept = (await transport.get_sandbox(self.id)).metadata["labels"]
            own = {name: value for name, value in kept.items() if name.startswith("ms-enclave/")}
            change = replace(change, labels={**own, **labels})
        self.saw(await transport.lifecycle.update(self.id, change))

    async def history(self) -> list[StateChange]:
        if not self._made:
            raise SandboxNotFound(f"Sandbox {self.id} not found: it was not started, or it was removed")
        return await (await self._connected()).lifecycle.history(self.id)

    async def cleanup(self) -> None:
        """Removes it with everything in it, whatever ``remove_on_exit`` says."""
        if self._made and self._transport is not None:
            with contextlib.suppress(SandboxNotFound):
                await self._transport.delete_sandbox(self.id)
            self._made = False
        self.update_status(SandboxStatus.STOPPED)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.config.remove_on_exit:
            await self.cleanup()
        else:
            await self.stop()

    async def refresh(self) -> SandboxInfo:
        """Asks the daemon how the sandbox is, and describes it. Raises `SandboxNotFound` if it is gone."""
        if not self._made:
            raise SandboxNotFound(f"Sandbox {self.id} not found: it was not started, or it was removed")
        self.saw(await (await self._connected()).get_sandbox(self.id))
        return self.get_info()

    def get_info(self) -> SandboxInfo:
        info = super().get_info()
        if self._last_seen is not None:
            info.config.update(self._last_seen.config)
            info.metadata.update(self._last_seen.metadata)
        if "tools_config" not in self.config.model_fields_set:
            info.config["tools_config"] = {name: {} for name in self.list_tools()}
        else:
            info.config["tools_config"] = self.config.tools_config
        return info

    async def get_execution_context(self) -> ExecutionContext:
        """Returns where it is. Finds or starts a daemon if that was not done yet."""
        return ExecutionContext((await self._connected()).address, self.id, self.config.working_dir)

    # -- tools ---------------------------------------------------------------------------------------------------

    def add_tool(self, tool: Tool) -> None:
        """Adds a tool. One of your own runs in your process; one of the daemon's must be enabled before `start`."""
        if self._made and isinstance(tool, SandboxTool) and tool.name not in self._tools:
            raise InvalidRequest(
                f"Tool {tool.name} runs in the sandbox and was not enabled when sandbox {self.id} was made; "
                "name it in tools_config, or add it before start()"
            )
        super().add_tool(tool)

    async def run_tool(
        self, tool_name: str, parameters: Mapping[str, Any], *, options: ExecutionOptions | None = None
    ) -> ToolResult:
        """Runs one of the daemon's tools in it. `execute_tool` is the documented way."""
        transport = await self.running_transport()
        try:
            result = await transport.run(self.call(tool_name, parameters, options))
        except SandboxNotFound:
            self._made = False  # its time was over, or somebody deleted it; start() makes it anew
            self.update_status(SandboxStatus.ERROR)
            raise
        if result.metadata.get("verdict") == Verdict.SANDBOX_LOST:
            self.update_status(SandboxStatus.ERROR)
        return result

    async def execute_command(
        self, command: str | list[str], timeout: float | None = None, stream: bool = True
    ) -> CommandResult:
        parameters: dict[str, Any] = {"command": command}
        if timeout is not None:
            parameters["timeout"] = timeout
        return results.command_result(command, await self.run_tool(COMMAND_TOOL, parameters))

    def _wanted_tools(self) -> dict[str, dict[str, Any]] | None:
        """Makes this process's own tools, and returns the daemon's to enable with their options; ``None`` for all."""
        if "tools_config" not in self.config.model_fields_set:
            return None
        wanted: dict[str, dict[str, Any]] = {n: {} for n, tool in self._tools.items() if isinstance(tool, SandboxTool)}
        for name, options in self.config.tools_config.items():
            if not options.get("enabled", True):
                continue
            tool_class = ToolFactory.find(name)
            if tool_class is not None and not issubclass(tool_class, SandboxTool):
                if name not in self._tools:
                    self.add_tool(ToolFactory.create_tool(name, **options))
            else:
                wanted[name] = {key: value for key, value in options.items() if key != "enabled"}
        return wanted

    def _know_tools(self, found: list[ToolInfo]) -> None:
        """Takes up what the daemon says about its tools."""
        named = self.config.tools_config if "tools_config" in self.config.model_fields_set else {}
        for info in found:
            self._aliases.update(dict.fromkeys(info.aliases, info.name))
            if info.name in self._tools:
                continue
            tool_class = ToolFactory.find(info.name)
            known = tool_class if tool_class is not None and issubclass(tool_class, SandboxTool) else SandboxTool
            self._tools[info.name] = known.from_info(info)
            if not named.keys() & {info.name, *info.aliases}:
                self._replaceable.add(info.name)

    # -- files ---------------------------------------------------------------------------------------------------

    async def put_file(self, path: str, text: str | bytes, encoding: str = "utf-8") -> None:
        """Writes a file, with missing directories above it. It appears complete or not at all.

        ``path`` is absolute or relative to the working directory, and lies in that or in /tmp. Raises `PathUnusable`,
        `NoSpace`, `InvalidRequest`.
        """
        data = uploads.encoded(text, encoding)
        await (await self._running()).write_file(self.id, path, uploads.content_of(data))

    async def read_file(self, path: str) -> bytes:
        """Reads a file of at most 1 GiB. Raises `PathNotFound`, `PathUnusable`, `InvalidRequest`."""
        transport = await self._running()
        hint = f"{path!r} has more than {READ_FILE_BYTES_MAX} bytes"
        return await whole(lambda: transport.read_file(self.id, path), READ_FILE_BYTES_MAX, hint)

    async def put_dir(self, source: str | os.PathLike[str], target: str) -> None:
        """Copies a directory of this machine, with everything below it, into ``target``.

        Files that are there already, by size, time and permissions, are not sent again. Links that stay inside become
        copies; empty directories are left out. Raises ``ValueError``, before anything is copied, for anything else
        than files and directories; `PathUnusable`, `NoSpace`.
        """
        await directories.put((await self._running()).files, self.id, Path(source), target)

    async def put_archive(self, target: str, tar_bytes: bytes) -> None:
        """Unpacks a tar archive (plain, gzip, bzip2 or xz) into ``target``.

        Raises ``ValueError`` for an archive that is empty, malformed or hostile: devices, names and links that lead out
        of ``target``. What came before such an entry stays. Hard links become copies. Raises `PathUnusable`, `NoSpace`.
        """
        files = (await self._running()).files
        if not tar_bytes:
            raise InvalidRequest("Archive body must not be empty")
        await files.write_archive(self.id, target, uploads.content_of(tar_bytes))

    # -- its daemon ----------------------------------------------------------------------------------------------

    async def _connected(self) -> Transport:
        if self._transport is None:
            self._transport = await process_daemons().connect()
        return self._transport

    async def running_transport(self) -> Transport:
        if not self._made or self._transport is None or self.status is SandboxStatus.STOPPED:
            raise self._not_running()
        return self._transport

    async def _running(self) -> Transport:
        if not self._made:
            raise self._not_running()
        return await self._connected()

    def saw(self, info: SandboxInfo) -> None:
        """Takes up what the daemon says about it."""
        self._last_seen = info
        self.status = info.status
        self.created_at, self.updated_at = info.created_at, info.updated_at
        self.metadata.pop("error", None)

    async def _remove_quietly(self, transport: Transport) -> None:
        """Removes what nobody will use. If that fails, its time to live ends it."""
        self._made = False
        with contextlib.suppress(EnclaveError, TimeoutError):
            async with asyncio.timeout(5):
                await transport.delete_sandbox(self.id)


@register_sandbox(SandboxType.DOCKER_NOTEBOOK)
class DockerNotebookSandbox(DockerSandbox):
    """A sandbox with a persistent notebook kernel. Not in this version."""

    served: ClassVar[bool] = False

    def __init__(self, config: SandboxConfig | None = None, sandbox_id: str | None = None) -> None:
        raise NotServed(
            "sandboxes of type docker_notebook come with a later version; python_executor in a sandbox of type "
            "docker keeps variables between calls as well"
        )

    @property
    def sandbox_type(self) -> SandboxType:
        return SandboxType.DOCKER_NOTEBOOK
