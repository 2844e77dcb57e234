"""Makes the container and the guest of a sandbox, and takes them down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import shutil
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from enclaved.agent.guest.limits import UNREACHABLE
from enclaved.agent.install import PYTHON_TOO_OLD, install_guest, packed_guest, write_accounts
from enclaved.agent.interpreter import find_guest_runtime
from enclaved.agent.jobs import environment
from enclaved.agent.link import GuestLink
from enclaved.core import host_paths
from enclaved.core.background import Background
from enclaved.core.channels import AUTO, Channels
from enclaved.core.gate import Gate
from enclaved.core.images import image_of
from enclaved.core.mounting import Mounting, Places
from enclaved.core.networks import NetworkSettings, SandboxNetworks
from enclaved.core.ownership import Ownership
from enclaved.core.record import SandboxRecord
from enclaved.core.runtime_classes import RuntimeClasses
from enclaved.core.uids import Uids
from enclaved.core.users import Users
from enclaved.core.watching import Watching
from enclaved.errors import (
    EngineRefused,
    EngineUnavailable,
    GuestUnavailable,
    ImageUnusable,
    NoSpace,
    SandboxLost,
)
from enclaved.metrics import Metrics
from enclaved.model import Channel, RuntimeClass, SandboxState
from enclaved.runtime.base import LABEL_ID, ByteChannel, ContainerPlan, GuestSettings, Runtime, StderrTail

log = logging.getLogger(__name__)

HELLO_DEADLINE_S = 30.0
CONNECT_PATIENCE_S = 5.0
"""The daemon listens before there is a guest: one that cannot connect so long never will."""
STATUS_EVERY_S = 0.5
PAUSE_DEADLINE_S = 5.0
LACKING_MOST = 1024
"""Images without Python that are remembered."""
SCRATCH_DIRS = ("/tmp", "/dev/shm", "/dev/mqueue")  # noqa: S108 - the container's own
"""What of a container user code may write to, beside the working directory and the image's volumes."""


@dataclass(frozen=True, slots=True)
class BootSettings:
    """Where sandboxes live on the host, and what they get from it."""

    state_dir: Path
    uid_first: int = 1_900_000_000
    uid_count: int = 65_536
    guest_absence_s: float = 0.0
    """Guests exit after this time without a daemon; 0: never."""
    may_pull: bool = True
    guest_runtime: str = ""
    """Where the interpreter for images without Python is; empty: in the usual places."""
    channel: str = AUTO
    """How guests are reached: ``auto`` or a `Channel`."""
    guard_image: str = "python:3.11-slim"
    """The image in which packet filters of networks are set."""
    dns: tuple[str, ...] = ()
    """Name servers of sandboxes with a network; empty: those of the host."""
    runtime_classes: tuple[RuntimeClass, ...] = ()
    """What sandboxes can be isolated by beside the engine's own runtime."""


class Boot:
    """Everything that turns a record into a running guest, and back."""

    def __init__(
        self,
        runtime: Runtime,
        settings: BootSettings,
        ownership: Ownership,
        background: Background,
        metrics: Metrics | None = None,
    ) -> None:
        self.channels = Channels(settings.channel, metrics)
        self.runtime_classes = RuntimeClasses(settings.runtime_classes)
        self._runtime, self._settings, self._ownership = runtime, settings, ownership
        self._background = background
        self.watching = Watching(runtime)
        network_settings = NetworkSettings(settings.guard_image, settings.dns, settings.may_pull)
        self.networks = SandboxNetworks(runtime, ownership, network_settings)
        self._guest_file = install_guest(settings.state_dir / "guest")
        self._guest_arguments = packed_guest()
        self._mounting = Mounting(runtime)
        self._uids = Uids(settings.uid_first, settings.uid_count)
        self._users = Users(runtime, self._uids)
        self._old_directories = set((settings.state_dir / "s").glob("*"))
        self._lacking: set[str] = set()
        self.canaries: dict[str, SandboxRecord] = {}
        """Sandboxes of the daemon's own, which are listed nowhere, by id."""
        self.gate: Gate | None = None
        """What holds sandboxes back until protections were seen to work here."""

    def take_uid(self) -> int:
        """Draws a user id that no other live sandbox of this daemon has. Raises `LimitReached`."""
        return self._uids.draw()

    @property
    def uids(self) -> frozenset[int]:
        """The user ids that are taken."""
        return self._uids.taken

    @property
    def guest_file(self) -> Path:
        """The guest that new sandboxes run."""
        return self._guest_file

    def return_uid(self, uid: int) -> None:
        """Lets another sandbox have a user id."""
        self._uids.put_back(uid)

    def new_directory(self) -> Path:
        """Names a directory on the host for one sandbox, short enough for socket paths."""
        base = self._settings.state_dir / "s"
        while (path := base / f"{random.getrandbits(32):08x}").exists():
            pass
        return path

    def take_up(self, record: SandboxRecord) -> None:
        """Prepares to take over a sandbox of an earlier daemon: its user id, its directory, a link for its guest."""
        self._uids.take(record.gid)
        self.networks.take_up(record)
        self._mounting.take_up(record)
        self._old_directories.discard(record.directory)
        if record.container_id is not None and record.state is not SandboxState.ERROR:
            has_socket = _socket_dir(record).exists()
            record.link = self._make_link(record, Channel.SOCKET if has_socket else Channel.ATTACH)
            record.link.has_met = True

    def remove_old_directories(self) -> None:
        """Removes the directories of sandboxes of earlier daemons, but for those that were taken up. Blocks."""
        while self._old_directories:
            shutil.rmtree(self._old_directories.pop(), ignore_errors=True)

    async def up(self, record: SandboxRecord, remaining_ttl_s: float) -> None:
        """Makes and starts the container, and waits for its guest, and until protections were seen to work.

        Leaves nothing behind when it fails, unless the engine is away: then the record still names the container.
        """
        try:
            gate = self.gate if record.id not in self.canaries else None
            if gate is not None:
                gate.expect(record.spec.image)
            await self._up(record, remaining_ttl_s)
            if gate is not None:
                await gate.wait_passed(record.spec.image)
        except BaseException:
            self._users.forget()  # it may be because the engine is another one now
            try:
                await self._background.finish(self.down(record), f"undo {record.id}")
            except EngineUnavailable as error:  # why it is there at all is the better answer
                log.warning("container left for now", extra={"sandbox_id": record.id, "reason": str(error)})
            raise

    async def _up(self, record: SandboxRecord, remaining_ttl_s: float) -> None:
        with contextlib.ExitStack() as stack:
            finding = host_paths.found(record.spec.mounts)
            places = await asyncio.to_thread(stack.enter_context, finding)
            await self._users.learn()
            self._users.check_mounts(record.spec.mounts)
            record.gid = self._users.fitting(record.gid)
            record.uid = self._mounting.user_of(record, places, self._uids.range)
            await self._make(record, remaining_ttl_s, places)

    async def _make(self, record: SandboxRecord, remaining_ttl_s: float, places: Places) -> None:
        spec = record.spec
        runtime_class = self.runtime_classes.of(spec)
        image = await image_of(spec, self._runtime, may_pull=self._settings.may_pull)
        network = await self.networks.plan(record)
        record.image = image
        record.env = environment(image.env, spec.env_vars, spec.working_dir)
        accounts = record.directory / "accounts"
        if record.directory.exists():  # a daemon was killed while it started this sandbox again
            await self._clear_away(record)
        try:
            record.directory.mkdir(mode=0o711, parents=True)
            resolvers = None if network is None else network.resolvers
            names = spec.extra_hosts
            write_accounts(
                accounts, record.uid, spec.working_dir, gid=record.gid, extra_hosts=names, resolvers=resolvers
            )
        except OSError as error:
            hint = "look at the room and the permissions there"
            text = f"cannot write to the daemon's state directory {record.directory}: {error.strerror}; {hint}"
            raise NoSpace(str(record.directory), text) from error
        plan = ContainerPlan(
            image=image,
            spec=self.runtime_classes.realised(spec),
            settings=GuestSettings(
                sandbox_id=record.id,
                uid=record.uid,
                gid=record.gid,
                working_dir=spec.working_dir,
                expires_in_s=remaining_ttl_s,
                daemon_absence_s=self._settings.guest_absence_s,
                memory_limit_bytes=spec.memory_limit_bytes,
                file_size_limit_bytes=max(spec.working_dir_size_bytes, spec.tmp_size_bytes),
                scratch_dirs=(*SCRATCH_DIRS, *image.volumes),
                connect_patience_s=CONNECT_PATIENCE_S,
                writes_on_host=bool(record.waived),
            ),
            guest_file=self._guest_file,
            socket_dir=_socket_dir(record),
            account_dir=accounts,
            group_id=os.getegid(),
            labels=self._ownership.labels(record.id, record.uid),
            network=network,
            engine_runtime=self.runtime_classes.engine_runtime(spec),
        )
        if runtime_class is not None:
            await self._start_over(record, plan, runtime_class.channel, places)
            return
        channel = self.channels.current
        try:
            await self._start_over(record, plan, channel, places)
        except EngineRefused as error:
            other = self.channels.other_after(error)
            if other is None:
                raise
            await self._clear_failed(record)
            if record.link is not None:
                await record.link.close()
            channel = other
            await self._start_over(record, plan, channel, places)
        self.channels.works(channel)

    async def _start_over(self, record: SandboxRecord, plan: ContainerPlan, channel: Channel, places: Places) -> None:
        """Starts the guest and reaches it over a channel."""
        link = record.link = self._make_link(record, channel)
        if link.attaches:
            sees_files = bool(plan.engine_runtime) and self.channels.known is Channel.SOCKET
            plan = replace(plan, guest_arguments=self._guest_arguments, mounts_accounts=sees_files)
        else:
            await link.listen()
        await self._start(record, plan, link)
        if places:
            await self._mounting.look_again(record, link, places)

    async def _clear_away(self, record: SandboxRecord) -> None:
        """Removes what a daemon that was killed left of a start: it would be in the way of another one."""
        for container in await self._runtime.list_records():
            if container.labels.get(LABEL_ID) == record.id and self._ownership.proves(container.labels):
                await self._runtime.remove(container.id)
                log.info("leftover removed", extra={"container_id": container.id, "sandbox_id": record.id})
        await asyncio.to_thread(shutil.rmtree, record.directory, True)

    async def _start(self, record: SandboxRecord, plan: ContainerPlan, link: GuestLink) -> None:
        """Starts the guest with the image's Python, or if the image has none, with the one that it brings along."""
        image = plan.image
        if image.id in self._lacking and not plan.guest_arguments:
            plan = replace(plan, interpreter_dir=find_guest_runtime(self._settings.guest_runtime))
        try:
            await self._start_once(record, plan, link)
        except ImageUnusable as error:
            interpreter_dir = find_guest_runtime(self._settings.guest_runtime)
            if not error.lacks_python or interpreter_dir is None:
                raise
            if plan.guest_arguments:
                text = "it has no Python 3.8 or newer, and this engine cannot mount one; use an image with Python"
                raise ImageUnusable(image.name, text) from error
            log.info("image without Python", extra={"image": image.name, "interpreter_dir": str(interpreter_dir)})
            await self._clear_failed(record)
            if len(self._lacking) >= LACKING_MOST:
                self._lacking.clear()
            self._lacking.add(image.id)
            await self._start_once(record, replace(plan, interpreter_dir=interpreter_dir), link)

    async def _start_once(self, record: SandboxRecord, plan: ContainerPlan, link: GuestLink) -> None:
        record.plan = plan
        record.container_id = await self._runtime.create(plan)
        async with self._runtime.starting(record.container_id) as stderr:
            if link.attaches:
                await link.listen()
            await self._await_guest(record, record.container_id, link, stderr)
            if plan.network is not None:
                record.published_ports = await self._runtime.join_network(record.container_id, plan)
        record.counted = self._runtime.counters(record.container_id)

    async def _clear_failed(self, record: SandboxRecord) -> None:
        """Removes a container that is to be made in another way."""
        if record.container_id is not None:
            await self._runtime.remove(record.container_id)
            record.container_id = None

    def _make_link(self, record: SandboxRecord, channel: Channel) -> GuestLink:
        link = GuestLink(
            record.id,
            _socket_dir(record),
            group_id=os.getegid(),
            # Where programs may run as the daemon's own user, that user is no sign of a guest.
            guest_uids={0} if record.waived else {0, os.geteuid()},
            open_channel=(lambda: self._channel_of(record)) if channel is Channel.ATTACH else None,
            find_mapped_root=lambda: self._users.guest_on_host(_socket_dir(record)),
        )
        link.on_ready = lambda: self.tell_expiry(record)
        return link

    def _channel_of(self, record: SandboxRecord) -> AbstractAsyncContextManager[ByteChannel]:
        if record.container_id is None:
            raise EngineRefused("attach to a sandbox", "it has no container now")
        return self._runtime.channel(record.container_id)

    @staticmethod
    def tell_expiry(record: SandboxRecord) -> None:
        """Tells the guest when it is to end by itself, should nobody remove it. While it is away it is not told."""
        left_s = record.born + record.spec.ttl_s - asyncio.get_running_loop().time()
        if record.link is not None:
            record.link.send({"type": "expire", "in_s": max(0.0, left_s)})

    async def limit(self, record: SandboxRecord) -> None:
        """Gives the container, if there is one, the limits of its spec. Raises `EngineRefused` where it cannot."""
        if record.container_id is not None:
            with self.runtime_classes.explaining(record.spec):
                await self._runtime.update(record.container_id, self.runtime_classes.realised(record.spec))

    async def _await_guest(self, record: SandboxRecord, container_id: str, link: GuestLink, stderr: StderrTail) -> None:
        """Waits for the hello; a container that ends before says why on its standard error."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + HELLO_DEADLINE_S
        while loop.time() < deadline:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_EVERY_S):
                    await link.wait_connected()
                    return
            status = await self._runtime.status(container_id)
            if status is None or not status.running:
                code = status.exit_code if status is not None else None
                words = stderr.text().strip() or (status.error if status is not None else "") or "it said nothing"
                if code == PYTHON_TOO_OLD:
                    fix = "make the interpreter that such images need with scripts/build-guest-runtime"
                    raise ImageUnusable(record.spec.image, f"{words}; {fix}", lacks_python=True)
                raise EngineRefused(
                    f"start sandbox {record.id!r}",
                    f"its guest ended with code {code}: {words}",
                    files_unseen=code == UNREACHABLE,
                )
        raise EngineRefused(
            f"start sandbox {record.id!r}",
            f"its guest did not report within {HELLO_DEADLINE_S:g} s: {stderr.text().strip() or 'it said nothing'}",
        )

    async def down(self, record: SandboxRecord) -> None:
        """Kills and removes whatever there is of a sandbox. Raises `EngineUnavailable`; can be repeated."""
        link, container_id = record.link, record.container_id
        if link is not None:
            link.fail(SandboxLost(record.id, record.state_reason or "it was removed"))
        if container_id is not None:
            await self._runtime.remove(container_id)
            record.container_id = None
        if link is not None:
            await link.close()
            record.link = None
        record.published_ports = ()
        self._mounting.leave(record)
        await self.networks.leave(record)
        await asyncio.to_thread(shutil.rmtree, record.directory, True)

    async def freeze(self, record: SandboxRecord) -> None:
        """Freezes a running sandbox, once its guest has stopped its clock. If that fails it runs on."""
        link, container_id = record.running_link(), record.container_id
        if container_id is None:
            raise GuestUnavailable(f"the container of sandbox {record.id!r} is not known yet; try again")
        if not link.connected:
            status = await self._runtime.status(container_id)
            if status is not None and status.paused:
                return  # a daemon that was killed then has done it, and the guest cannot come to say so
        await link.ask("pause", PAUSE_DEADLINE_S)
        try:
            await self._runtime.pause(container_id)
        except BaseException:
            link.send({"type": "resume"})
            raise

    async def thaw(self, record: SandboxRecord) -> None:
        """Lets a frozen sandbox go on."""
        if record.container_id is not None:
            await self._runtime.unpause(record.container_id)
        if record.link is not None:
            record.link.send({"type": "resume"})


def _socket_dir(record: SandboxRecord) -> Path:
    """Where the socket of its guest is. A sandbox without this directory is attached to."""
    return record.directory / "socket"
