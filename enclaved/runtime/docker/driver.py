"""`Runtime` over a Docker engine."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiodocker
from aiodocker.containers import DockerContainer

from enclaved.errors import EnclaveError, EngineUnavailable, InvalidRequest
from enclaved.model import EngineInfo, Network, PortMapping, PullProgress, ResourceUsage, SandboxSpec
from enclaved.runtime.base import (
    LABEL_ID,
    ByteChannel,
    ContainerEvent,
    ContainerPlan,
    ContainerRecord,
    ContainerStatus,
    Counters,
    Image,
    NetworkRecord,
    StderrTail,
)
from enclaved.runtime.docker.cgroup import DEFAULT_ROOT, ControlGroups
from enclaved.runtime.docker.channel import AttachedChannel
from enclaved.runtime.docker.engine import Deadlines, Engine
from enclaved.runtime.docker.errors import docker_errors
from enclaved.runtime.docker.events import OPERATION, query, read_events
from enclaved.runtime.docker.facts import cgroup_version
from enclaved.runtime.docker.images import Images
from enclaved.runtime.docker.networks import Networks
from enclaved.runtime.docker.options import container_name, create_body, resource_limits
from enclaved.runtime.docker.remap import mapped_root, maps_users
from enclaved.runtime.docker.stderr import Attachment, Tail

STARTS_AT_ONCE = 64
"""Each start holds a connection until its block ends; aiohttp lends 100 for everything."""
FREEZE_ATTEMPTS = 5
"""On a busy machine with version 1 of control groups the engine gives up on processes that fork at that moment."""
FREEZE_AGAIN_S = 0.05
CLOSE_S = 5.0
"""How long `close` waits for removals. What an engine that hangs keeps is for the next daemon to clear away."""
LAST_WORDS_S = 1.0
"""How long `status` waits for the rest of the standard error of a guest that ended."""

_NO_ALIASES: Mapping[str, str] = MappingProxyType({})
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)


class DockerRuntime:
    """Makes, starts, looks at and removes containers on one engine.

    ``engine_url`` is ``unix:///path`` or ``tcp://host:port`` (see `detect_engine_url`). An engine that does not see the
    daemon's files under the same paths needs plans with ``guest_arguments``. ``image_aliases`` names images of the
    engine for names that need a registry. Nothing is asked of the engine before the first call, and one that was away
    is found again. ``waived`` names protections that the operator does without, where the engine says it lacks them.
    """

    def __init__(
        self,
        engine_url: str,
        *,
        image_aliases: Mapping[str, str] = _NO_ALIASES,
        deadlines: Deadlines | None = None,
        cgroup_root: Path = DEFAULT_ROOT,
        waived: Collection[str] = (),
    ) -> None:
        self._deadlines = deadlines or Deadlines()
        self._engine = Engine(engine_url, self._deadlines, waived=waived)
        # Each channel keeps a connection for as long as its sandbox runs.
        self._channels = Engine(engine_url, self._deadlines, connections_max=0)
        self._images = Images(self._engine, image_aliases)
        self._networks = Networks(self._engine)
        self._groups = ControlGroups(cgroup_root)
        self._starting = asyncio.Semaphore(STARTS_AT_ONCE)
        self._tails: dict[str, Tail] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def info(self) -> EngineInfo:
        """See `Runtime.info`."""
        async with self._engine.calling("say what it is", self._deadlines.query_s) as docker:
            info = await docker.system.info()
        version = str(info.get("ServerVersion", ""))
        return EngineInfo(
            name="docker",
            version=version,
            available=True,
            cgroup_version=cgroup_version(info),
            maps_users=maps_users(info),
            mapped_root=mapped_root(info),
        )

    async def resolve_image(self, image: str, *, may_pull: bool) -> Image:
        """See `Runtime.resolve_image`. Raises `InvalidRequest` too, for what is no image name."""
        return await self._images.resolve(image, may_pull=may_pull)

    def pull_image(self, image: str) -> AsyncGenerator[PullProgress]:
        """See `Runtime.pull_image`. Raises `InvalidRequest` too, for what is no image name."""
        return self._images.pull(image)

    async def create(self, plan: ContainerPlan) -> str:
        """See `Runtime.create`. Raises `InvalidRequest` and `ImageUnusable` too (see `create_body`)."""
        name = container_name(plan)
        body = create_body(plan, await self._engine.facts())
        if plan.spec.network is not Network.NONE:
            if plan.network is None:
                raise InvalidRequest.of("spec.network", "needs a network that the daemon has planned")
            await self._networks.ensure(plan, plan.network)
        # An engine goes on with a create whose client has left. So this call is not cancelled with its caller: it is
        # waited for, and what it made is removed.
        creating = asyncio.create_task(self._create(name, body, plan), name=f"create {name}")
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            await self._to_the_end(self._undo(creating))
            raise

    @asynccontextmanager
    async def starting(self, container_id: str) -> AsyncIterator[StderrTail]:
        """See `Runtime.starting`. At most `STARTS_AT_ONCE` of these blocks are open at a time; more wait."""
        _check_id(container_id)
        async with self._starting, self._engine.using() as docker:
            attachment = Attachment(docker.containers.container(container_id))
            try:
                async with self._engine.calling("start a container", self._deadlines.query_s):
                    await attachment.open()
                await self._start(container_id)
                self._tails[container_id] = attachment.tail
                yield attachment.tail
            finally:
                self._tails.pop(container_id, None)
                await attachment.close()

    @asynccontextmanager
    async def channel(self, container_id: str) -> AsyncIterator[ByteChannel]:
        """See `Runtime.channel`."""
        _check_id(container_id)
        async with self._channels.using() as docker:
            channel = AttachedChannel(docker.containers.container(container_id))
            try:
                async with self._channels.calling("attach to a container", self._deadlines.query_s):
                    await channel.open()
                yield channel
            finally:
                await channel.close()

    async def join_network(self, container_id: str, plan: ContainerPlan) -> tuple[PortMapping, ...]:
        """See `Runtime.join_network`."""
        _check_id(container_id)
        if plan.network is None:
            return ()
        return await self._networks.join(container_id, plan, plan.network)

    async def list_networks(self) -> list[NetworkRecord]:
        """See `Runtime.list_networks`."""
        return await self._networks.records()

    async def remove_network(self, network_id: str) -> bool:
        """See `Runtime.remove_network`."""
        _check_id(network_id)
        return await self._networks.remove(network_id)

    async def status(self, container_id: str) -> ContainerStatus | None:
        """See `Runtime.status`. In a `starting` block, one that ended has no more to say on standard error."""
        _check_id(container_id)
        async with self._engine.calling("look at a container", self._deadlines.query_s) as docker:
            try:
                container = await docker.containers.get(container_id)
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return None
                raise
        status = _status(container["State"])
        if not status.running and (tail := self._tails.get(container_id)) is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await tail.ended.wait()
        return status

    async def pause(self, container_id: str) -> None:
        """See `Runtime.pause`."""
        _check_id(container_id)
        async with self._engine.calling("pause a container", self._deadlines.query_s) as docker:
            for left in reversed(range(FREEZE_ATTEMPTS)):
                try:
                    await docker.containers.container(container_id).pause()
                except aiodocker.DockerError as error:
                    if "already paused" in error.message:
                        return
                    if left == 0 or "unable to freeze" not in error.message:
                        raise
                    await asyncio.sleep(FREEZE_AGAIN_S)
                else:
                    return

    async def unpause(self, container_id: str) -> None:
        """See `Runtime.unpause`."""
        _check_id(container_id)
        async with self._engine.calling("unpause a container", self._deadlines.query_s) as docker:
            try:
                await docker.containers.container(container_id).unpause()
            except aiodocker.DockerError as error:
                if "is not paused" not in error.message:
                    raise

    async def update(self, container_id: str, spec: SandboxSpec) -> None:
        """See `Runtime.update`."""
        _check_id(container_id)
        limits = resource_limits(spec, await self._engine.facts())
        async with self._engine.calling("change the limits of a container", self._deadlines.query_s) as docker:
            path = f"containers/{container_id}/update"
            # The library has no method for it.
            await docker._query_json(path, "POST", data=limits)  # noqa: SLF001

    async def has_limits(self, container_id: str, spec: SandboxSpec) -> bool:
        """See `Runtime.has_limits`."""
        _check_id(container_id)
        wanted = resource_limits(spec, await self._engine.facts())
        async with self._engine.calling("look at a container", self._deadlines.query_s) as docker:
            try:
                container = await docker.containers.get(container_id)
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return True
                raise
        limits = container["HostConfig"]
        return all(limits.get(name) == value for name, value in wanted.items())

    async def remove(self, container_id: str) -> None:
        """See `Runtime.remove`."""
        _check_id(container_id)
        async with self._engine.calling("remove a container", self._deadlines.remove_s) as docker:
            await _remove(docker.containers.container(container_id))
        self._groups.forget(container_id)

    async def list_records(self) -> list[ContainerRecord]:
        """See `Runtime.list_records`."""
        async with self._engine.calling("list containers", self._deadlines.query_s) as docker:
            containers = await docker.containers.list(all=True, filters={"label": [LABEL_ID]})
        return [
            ContainerRecord(c.id, dict(c["Labels"]), c["State"] in ("running", "paused"), c["State"] == "paused")
            for c in containers
        ]

    @asynccontextmanager
    async def events(self, since_ns: int = 0) -> AsyncIterator[AsyncIterator[ContainerEvent]]:
        """See `Runtime.events`."""
        async with self._engine.using() as docker, AsyncExitStack() as stack:
            async with self._engine.calling(OPERATION, self._deadlines.query_s):
                # The library's own way queues without a bound.
                asking = docker._query("events", params=query(since_ns), timeout=None)  # noqa: SLF001
                response = await stack.enter_async_context(asking)
            stack.callback(response.close)
            yield read_events(response, self._engine.url)

    def counters(self, container_id: str) -> Counters | None:
        """See `Runtime.counters`."""
        _check_id(container_id)
        return self._groups.counters(container_id)

    def usage(self, container_id: str) -> ResourceUsage | None:
        """See `Runtime.usage`."""
        _check_id(container_id)
        return self._groups.usage(container_id)

    async def close(self) -> None:
        """See `Runtime.close`. Waits for removals that a cancelled `create` left to do."""
        if self._background:
            await asyncio.wait(self._background, timeout=min(CLOSE_S, self._deadlines.remove_s))
        await self._images.close()
        await self._channels.close()
        await self._engine.close()
        self._groups.close()

    async def _create(self, name: str, body: Mapping[str, Any], plan: ContainerPlan) -> str:
        image, wanted = plan.image.name, {"name": name}
        if plan.spec.platform:
            wanted["platform"] = plan.spec.platform  # the engine refuses an image that is for another one
        try:
            async with self._engine.calling("create a container", self._deadlines.create_s, image=image) as docker:
                # The library's method has no platform.
                path = "containers/create"
                made = await docker._query_json(path, "POST", params=wanted, data=dict(body))  # noqa: SLF001
        except EngineUnavailable:
            # The engine may have made it all the same, and we do not know its id.
            await self._remove_unstarted(name)
            raise
        return str(made["Id"])

    async def _undo(self, creating: asyncio.Task[str]) -> None:
        try:
            container_id = await creating
        except EnclaveError:
            return  # Nothing was made, or `_create` has dealt with it.
        try:
            await self.remove(container_id)
        except EnclaveError as error:
            _warn_left_over(container_id, error)

    async def _remove_unstarted(self, name: str) -> None:
        """Removes the container of this name, unless it runs: then it is an earlier one, and in use."""
        try:
            async with self._engine.calling("remove a container", self._deadlines.query_s) as docker:
                container = await docker.containers.get(name)
                if container["State"]["Status"] == "created":
                    await _remove(container)
        except EnclaveError as error:
            _warn_left_over(name, error)

    async def _start(self, container_id: str) -> None:
        async with self._engine.calling("start a container", self._deadlines.start_s) as docker:
            try:
                await docker.containers.container(container_id).start()
            except aiodocker.DockerError:
                image = await self._image_of(container_id)
                with docker_errors("start a container", self._engine.url, image=image):
                    raise

    async def _image_of(self, container_id: str) -> str:
        """The name of a container's image, for an error about it; as good as can be had."""
        try:
            async with self._engine.calling("look at a container", self._deadlines.query_s) as docker:
                container = await docker.containers.get(container_id)
            return await self._images.tag_of(str(container["Image"]))
        except EnclaveError:
            return "of the sandbox"

    async def _to_the_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Waits for work that goes on when the waiting is cancelled."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        await asyncio.shield(task)


async def _remove(container: DockerContainer) -> None:
    try:
        await container.delete(force=True, v=True)
    except aiodocker.DockerError as error:
        if error.status == 409 and "in progress" in error.message:
            await _gone(container)
        elif error.status != 404:
            raise


async def _gone(container: DockerContainer) -> None:
    """Waits until a container that somebody else is removing is gone."""
    try:
        await container.wait(condition="removed")
    except aiodocker.DockerError as error:
        if error.status != 404:
            raise


def _status(state: Mapping[str, Any]) -> ContainerStatus:
    ended = state["Status"] in ("exited", "dead", "removing")
    return ContainerStatus(
        running=bool(state["Running"]),
        paused=bool(state["Paused"]),
        exit_code=int(state["ExitCode"]) if ended else None,
        oom_killed=bool(state["OOMKilled"]),
        error=str(state.get("Error") or ""),
        pid=int(state.get("Pid") or 0),
    )


def _warn_left_over(container: str, error: EnclaveError) -> None:
    # Its labels tell the daemon's next look at the engine what it is.
    _log.warning("a container may be left over", extra={"container": container, "error": str(error)})


def _check_id(container_id: str) -> None:
    """Nothing but an id gets into a URL or a path."""
    if not _CONTAINER_ID.fullmatch(container_id):
        raise InvalidRequest.of("container_id", "is no container id: 64 hex digits")
