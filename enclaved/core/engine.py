"""The engine as the daemon sees it: every call to it is counted and timed, and each tells whether it is there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager

from enclaved.errors import EngineUnavailable
from enclaved.metrics import Metrics
from enclaved.model import EngineInfo, PortMapping, PullProgress, ResourceUsage, SandboxSpec
from enclaved.runtime.base import (
    ByteChannel,
    ContainerEvent,
    ContainerPlan,
    ContainerRecord,
    ContainerStatus,
    Counters,
    Image,
    NetworkRecord,
    Runtime,
    StderrTail,
)

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0
LOOK_EVERY_WHILE_AWAY_S = 1.0


class WatchedRuntime:
    """A `Runtime` that hands every call on, counts it, and knows whether the engine is available."""

    def __init__(self, runtime: Runtime, metrics: Metrics) -> None:
        self._runtime, self._metrics = runtime, metrics
        self._available: bool | None = None
        self._doubted = asyncio.Event()
        metrics.engine.up(False)

    @property
    def available(self) -> bool:
        """Whether the engine answered when it was last asked; false before the first time."""
        return self._available is True

    async def watch(self, changed: Callable[[bool], Awaitable[None]]) -> None:
        """Looks at the engine now, then from time to time, and at once when a call found it away. Never returns.

        ``changed`` hears what the first look finds, and every change after it.
        """
        told: bool | None = None
        while True:
            self._doubted.clear()
            await self._look()
            if self._available is not told:
                told = self._available
                await changed(self.available)
            try:
                async with asyncio.timeout(LOOK_EVERY_S if self.available else LOOK_EVERY_WHILE_AWAY_S):
                    await self._doubted.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        try:
            info = await self.info()
        except EngineUnavailable as error:
            if self._available is not False:
                _log.warning("engine does not answer; sandboxes cannot be created", extra={"reason": str(error)})
            self._found(False)
        else:
            if self._available is not True:
                _log.info("engine answers", extra={"engine": info.name, "version": info.version})
            self._found(True)

    def _found(self, available: bool) -> None:
        self._available = available
        self._metrics.engine.up(available)

    # -- the Runtime

    async def info(self) -> EngineInfo:
        """See `Runtime.info`."""
        with self._calling("info"):
            return await self._runtime.info()

    async def resolve_image(self, image: str, *, may_pull: bool) -> Image:
        """See `Runtime.resolve_image`."""
        with self._calling("resolve_image"):
            return await self._runtime.resolve_image(image, may_pull=may_pull)

    async def pull_image(self, image: str) -> AsyncGenerator[PullProgress]:
        """See `Runtime.pull_image`."""
        with self._calling("pull"):
            async with aclosing(self._runtime.pull_image(image)) as steps:
                async for step in steps:
                    yield step

    async def create(self, plan: ContainerPlan) -> str:
        """See `Runtime.create`."""
        with self._calling("create"):
            return await self._runtime.create(plan)

    @asynccontextmanager
    async def starting(self, container_id: str) -> AsyncIterator[StderrTail]:
        """See `Runtime.starting`. What is timed is the start, not the block."""
        async with AsyncExitStack() as stack:
            with self._calling("start"):
                tail = await stack.enter_async_context(self._runtime.starting(container_id))
            yield tail

    @asynccontextmanager
    async def channel(self, container_id: str) -> AsyncIterator[ByteChannel]:
        """See `Runtime.channel`. What is timed is the attach, not the block."""
        async with AsyncExitStack() as stack:
            with self._calling("attach"):
                channel = await stack.enter_async_context(self._runtime.channel(container_id))
            yield channel

    async def join_network(self, container_id: str, plan: ContainerPlan) -> tuple[PortMapping, ...]:
        """See `Runtime.join_network`."""
        with self._calling("join_network"):
            return await self._runtime.join_network(container_id, plan)

    async def list_networks(self) -> list[NetworkRecord]:
        """See `Runtime.list_networks`."""
        with self._calling("list_networks"):
            return await self._runtime.list_networks()

    async def remove_network(self, network_id: str) -> bool:
        """See `Runtime.remove_network`."""
        with self._calling("remove_network"):
            return await self._runtime.remove_network(network_id)

    async def status(self, container_id: str) -> ContainerStatus | None:
        """See `Runtime.status`."""
        with self._calling("status"):
            return await self._runtime.status(container_id)

    async def pause(self, container_id: str) -> None:
        """See `Runtime.pause`."""
        with self._calling("pause"):
            await self._runtime.pause(container_id)

    async def unpause(self, container_id: str) -> None:
        """See `Runtime.unpause`."""
        with self._calling("unpause"):
            await self._runtime.unpause(container_id)

    async def update(self, container_id: str, spec: SandboxSpec) -> None:
        """See `Runtime.update`."""
        with self._calling("update"):
            await self._runtime.update(container_id, spec)

    async def has_limits(self, container_id: str, spec: SandboxSpec) -> bool:
        """See `Runtime.has_limits`."""
        with self._calling("status"):
            return await self._runtime.has_limits(container_id, spec)

    async def remove(self, container_id: str) -> None:
        """See `Runtime.remove`."""
        with self._calling("remove"):
            await self._runtime.remove(container_id)

    async def list_records(self) -> list[ContainerRecord]:
        """See `Runtime.list_records`."""
        with self._calling("list"):
            return await self._runtime.list_records()

    @asynccontextmanager
    async def events(self, since_ns: int = 0) -> AsyncIterator[AsyncIterator[ContainerEvent]]:
        """See `Runtime.events`. What is timed is the beginning, not the block."""
        async with AsyncExitStack() as stack:
            with self._calling("events"):
                events = await stack.enter_async_context(self._runtime.events(since_ns))
            yield events

    def counters(self, container_id: str) -> Counters | None:
        """See `Runtime.counters`."""
        return self._runtime.counters(container_id)

    def usage(self, container_id: str) -> ResourceUsage | None:
        """See `Runtime.usage`."""
        return self._runtime.usage(container_id)

    async def close(self) -> None:
        """See `Runtime.close`."""
        await self._runtime.close()

    @contextmanager
    def _calling(self, call: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        except BaseException as error:
            self._metrics.engine.called(call, time.perf_counter() - started, error)
            if isinstance(error, EngineUnavailable) and call != "info":
                self._doubted.set()  # one call that failed decides nothing: the next look does
            raise
        self._metrics.engine.called(call, time.perf_counter() - started)
