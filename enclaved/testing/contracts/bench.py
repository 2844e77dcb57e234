"""The containers of one test: their plans, their guests, and their removal."""
# ruff: noqa: S101 - assertions are what a contract consists of

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from enclaved.agent.handle import RunOptions
from enclaved.agent.install import install_guest, packed_guest, write_accounts
from enclaved.agent.jobs import encode_job, environment
from enclaved.agent.link import GuestLink
from enclaved.model import Job, Output, SandboxSpec
from enclaved.runtime.base import (
    LABEL_ID,
    LABEL_OWNER,
    ContainerPlan,
    ContainerStatus,
    GuestSettings,
    Image,
    Runtime,
)

PATIENCE_S = 60.0
"""How long a test waits for what must happen. Reached only by a failure."""
MIB = 1024 * 1024

_UID = 1_900_054_321


@dataclass
class Site:
    """What one container needs on the host: a plan, and the socket that its guest will look for."""

    plan: ContainerPlan
    link: GuestLink
    containers: list[str]
    """Its container, once it was made by `Bench.create`."""

    async def reach(self) -> None:
        """Waits for the guest, once its container was started."""
        if self.link.attaches:
            await self.link.listen()
        await self.link.wait_connected()

    async def run(self, job: Job) -> str:
        """Runs a job in the container's guest and returns its output; it must end well."""
        env = environment(self.plan.image.env, {}, self.plan.spec.working_dir)
        handle, reader = self.link.start(secrets.token_hex(4), encode_job(job, env), RunOptions(timeout_s=PATIENCE_S))
        output = bytearray()
        while (item := await reader.next()) is not None:
            if isinstance(item, Output):
                output += item.data
        report = await handle.finished
        assert report["exit_code"] == 0, output.decode()
        return output.decode()


@dataclass
class Bench:
    """Makes sites for one test, and takes everything away after it."""

    runtime: Runtime
    image: Image
    directory: Path
    sites: list[Site]
    owner: str
    attached: bool = False
    """Whether frames travel over `Runtime.channel`, without any mount."""

    async def site(self, guest: str | None = None) -> Site:
        """Plans a container. With ``guest``, Python source, its guest is that and not ours."""
        sandbox_id = secrets.token_hex(6)
        home = self.directory / sandbox_id
        home.mkdir(mode=0o711)
        working_dir, uid = "/sandbox", _UID if os.getuid() == 0 else os.getuid()
        write_accounts(home / "accounts", uid, working_dir)
        containers: list[str] = []
        link = GuestLink(
            sandbox_id,
            home / "socket",
            group_id=os.getegid(),
            guest_uids={0, os.geteuid()},
            open_channel=(lambda: self.runtime.channel(containers[0])) if self.attached else None,
        )
        if not self.attached:
            await link.listen()
        plan = ContainerPlan(
            image=self.image,
            spec=_spec(self.image.name, working_dir),
            settings=GuestSettings(
                sandbox_id=sandbox_id,
                uid=uid,
                working_dir=working_dir,
                expires_in_s=600.0,
                daemon_absence_s=PATIENCE_S,
                memory_limit_bytes=256 * MIB,
            ),
            guest_file=self._guest_file(home, guest),
            socket_dir=link.directory,
            account_dir=home / "accounts",
            group_id=os.getegid(),
            labels={LABEL_ID: sandbox_id, LABEL_OWNER: self.owner, "enclaved.test": "a label of the test"},
            guest_arguments=packed_guest(guest.encode() if guest is not None else None) if self.attached else (),
        )
        site = Site(plan, link, containers)
        self.sites.append(site)
        return site

    def _guest_file(self, home: Path, guest: str | None) -> Path:
        if guest is None:
            return install_guest(self.directory / "guest")
        path = home / "guest.py"
        path.write_text(guest)
        path.chmod(0o444)
        return path

    async def create(self, site: Site) -> str:
        """Makes its container."""
        site.containers.append(await self.runtime.create(site.plan))
        return site.containers[0]

    @contextlib.asynccontextmanager
    async def running(self, site: Site) -> AsyncIterator[str]:
        """A container whose guest has come; the block has its id, and ends with its removal."""
        container_id = await self.create(site)
        async with self.runtime.starting(container_id):
            await site.reach()
        yield container_id
        await self.runtime.remove(container_id)

    async def ended(self, container_id: str) -> ContainerStatus:
        """Waits until a container's guest has ended."""
        while True:
            status = await self.runtime.status(container_id)
            assert status is not None, "it is gone"
            if not status.running:
                return status
            await asyncio.sleep(0.01)

    async def ours(self) -> dict[str, Mapping[str, str]]:
        """The containers of this test, by id, with their labels."""
        records = await self.runtime.list_records()
        return {record.id: record.labels for record in records if record.labels.get(LABEL_OWNER) == self.owner}

    async def close(self) -> None:
        """Removes what a test left."""
        for container_id in await self.ours():
            await self.runtime.remove(container_id)
        for site in self.sites:
            await site.link.close()


def _spec(image: str, working_dir: str) -> SandboxSpec:
    return SandboxSpec(
        image=image,
        memory_limit_bytes=256 * MIB,
        cpu_limit=1.0,
        pids_limit=64,
        working_dir_size_bytes=16 * MIB,
        tmp_size_bytes=8 * MIB,
        shm_size_bytes=4 * MIB,
        working_dir=working_dir,
        env_vars={},
        tools=None,
        timeout_s=30.0,
        timeout_max_s=600.0,
        ttl_s=600.0,
        remove_on_exit=True,
    )
