"""The engine of crash tests: it runs in the test's process and outlives daemons, which ask it over a socket.

As with a real engine, what was asked for happens, also if whoever asked is killed before the answer.
"""

from __future__ import annotations

import asyncio
import copyreg
import pickle
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from enclaved.errors import EngineRefused, EngineUnavailable
from enclaved.model import SandboxSpec
from enclaved.runtime.base import ContainerPlan, ContainerRecord, ContainerStatus, NetworkRecord
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.crash.fuse import Fuse

copyreg.pickle(MappingProxyType, lambda mapping: (MappingProxyType, (dict(mapping),)))  # specs have them as defaults

_LENGTH = struct.Struct("!I")
_ANSWER_S = 30.0


class Engine(SubprocessRuntime):
    """Serves itself on a socket."""

    @asynccontextmanager
    async def serving(self, path: Path) -> AsyncIterator[None]:
        """Answers daemons for as long as the block runs, and kills what is left at its end."""
        self._working: set[asyncio.Task[Any]] = set()
        server = await asyncio.start_unix_server(self._answer, path)
        try:
            yield
        finally:
            server.close()
            if self._working:
                await asyncio.wait(self._working, timeout=_ANSWER_S)
            await self.close()

    async def create(self, plan: ContainerPlan) -> str:
        """As a real engine, has one container of a name."""
        if plan.settings.sandbox_id in self.containers().values():
            raise EngineRefused("create a container", f"the name of {plan.settings.sandbox_id} is in use")
        return await super().create(plan)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            name, arguments = await _read(reader)
        except asyncio.IncompleteReadError:
            writer.close()
            return
        task = asyncio.create_task(self._do(name, arguments))
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        answer = await task
        with suppress(OSError):  # whoever asked may be gone
            _write(writer, answer)
            await writer.drain()
        writer.close()

    async def _do(self, name: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
        try:
            if name != "starting":
                return True, await getattr(self, name)(*arguments)
            async with self.starting(*arguments):
                return True, None
        except EngineRefused as error:
            return False, str(error)

    def containers(self) -> dict[str, str]:
        """The sandboxes of the containers that there are, by container."""
        return {key: found.plan.settings.sandbox_id for key, found in self._containers.items()}


class RemoteRuntime(SubprocessRuntime):
    """What a daemon has of an `Engine`. The fuse is passed when a request is sent and not answered."""

    def __init__(self, path: Path, fuse: Fuse) -> None:
        super().__init__()
        self._path, self._fuse = path, fuse

    async def _ask(self, name: str, *arguments: Any) -> Any:
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
        except OSError as error:
            raise EngineUnavailable("subprocess", str(error)) from error
        try:
            _write(writer, (name, arguments))
            await writer.drain()
            self._fuse.passes(f"engine.{name}", "during")
            done, answer = await _read(reader)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise EngineUnavailable("subprocess", str(error)) from error
        finally:
            writer.close()
        if not done:
            raise EngineRefused(name, answer)
        return answer

    async def create(self, plan: ContainerPlan) -> str:
        """See `Runtime.create`."""
        asking = asyncio.ensure_future(self._ask("create", plan))
        try:
            return str(await asyncio.shield(asking))
        except asyncio.CancelledError:
            await self._ask("remove", await asking)
            raise

    @asynccontextmanager
    async def starting(self, container_id: str) -> AsyncIterator[Any]:
        """See `Runtime.starting`."""
        await self._ask("starting", container_id)
        yield _NothingSaid()

    async def status(self, container_id: str) -> ContainerStatus | None:
        """See `Runtime.status`."""
        found: ContainerStatus | None = await self._ask("status", container_id)
        return found

    async def pause(self, container_id: str) -> None:
        """See `Runtime.pause`."""
        await self._ask("pause", container_id)

    async def unpause(self, container_id: str) -> None:
        """See `Runtime.unpause`."""
        await self._ask("unpause", container_id)

    async def update(self, container_id: str, spec: SandboxSpec) -> None:
        """See `Runtime.update`."""
        await self._ask("update", container_id, spec)

    async def remove(self, container_id: str) -> None:
        """See `Runtime.remove`."""
        await self._ask("remove", container_id)

    async def list_records(self) -> list[ContainerRecord]:
        """See `Runtime.list_records`."""
        found: list[ContainerRecord] = await self._ask("list_records")
        return found

    async def list_networks(self) -> list[NetworkRecord]:
        """There are none."""
        return []

    async def close(self) -> None:
        """Containers stay."""


class _NothingSaid:
    def text(self) -> str:
        """The standard error of the guest stays with the engine."""
        return ""


def _write(writer: asyncio.StreamWriter, value: Any) -> None:
    data = pickle.dumps(value)
    writer.write(_LENGTH.pack(len(data)) + data)


async def _read(reader: asyncio.StreamReader) -> Any:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(length))
