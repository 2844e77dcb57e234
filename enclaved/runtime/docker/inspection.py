"""`Inspector` over a Docker engine and the kernel's control groups."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiodocker

from enclaved.errors import EngineRefused
from enclaved.runtime.base import ContainerPlan
from enclaved.runtime.docker.cgroup import DEFAULT_ROOT
from enclaved.runtime.docker.engine import Deadlines, Engine
from enclaved.runtime.docker.facts import cgroup_version, lacking
from enclaved.runtime.docker.group_limits import PARENTS, container_groups, read_limits
from enclaved.runtime.docker.options import create_body
from enclaved.runtime.docker.profile import deviations
from enclaved.runtime.inspection import Deviation, GroupLimits, HostFacts

_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")


class DockerInspector:
    """Looks at the containers of one engine, over a connection of its own. ``waived``: see `Engine`."""

    def __init__(
        self,
        engine_url: str,
        *,
        deadlines: Deadlines | None = None,
        cgroup_root: Path = DEFAULT_ROOT,
        waived: Collection[str] = (),
    ) -> None:
        self._deadlines = deadlines or Deadlines()
        self._engine = Engine(engine_url, self._deadlines, waived=waived)
        self._root = cgroup_root

    async def host(self) -> HostFacts:
        """See `Inspector.host`."""
        async with self._engine.calling("say what it is", self._deadlines.query_s) as docker:
            info = await docker.system.info()
        options = [str(option) for option in info.get("SecurityOptions") or ()]
        runtimes = info.get("Runtimes")
        return HostFacts(
            engine_version=str(info.get("ServerVersion", "")),
            cgroup_version=cgroup_version(info),
            cgroup_driver=str(info.get("CgroupDriver", "")),
            lacking=lacking(info),
            apparmor=any(option.startswith("name=apparmor") for option in options),
            user_namespaces=any(option.startswith(("name=userns", "name=rootless")) for option in options),
            live_restore=info.get("LiveRestoreEnabled") is True,
            swap_limits=info.get("SwapLimit") is True,
            default_runtime=str(info.get("DefaultRuntime", "")),
            runtimes=tuple(sorted(str(name) for name in runtimes)) if isinstance(runtimes, dict) else (),
            engine_id=str(info.get("ID", "")),
        )

    async def deviations(self, container_id: str, plan: ContainerPlan) -> Sequence[Deviation]:
        """See `Inspector.deviations`."""
        is_whole = bool(plan.image.id)
        if not is_whole:
            plan = replace(plan, image=replace(plan.image, id="unknown"))
        body = create_body(plan, await self._engine.facts())
        seen = await self._inspect(container_id)
        if seen is None:
            return ()
        try:
            return tuple(deviations(body, seen, is_whole=is_whole))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            text = f"its description of container {container_id[:12]} cannot be read: {error!r}"
            raise EngineRefused("look at a container", text) from error

    async def _inspect(self, container_id: str) -> Mapping[str, Any] | None:
        if not _CONTAINER_ID.fullmatch(container_id):
            return None
        async with self._engine.calling("look at a container", self._deadlines.query_s) as docker:
            try:
                found = await docker.containers.container(container_id).show()
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return None
                raise
        return found if isinstance(found, dict) else {}

    def limits(self, container_id: str) -> GroupLimits | None:
        """See `Inspector.limits`."""
        return read_limits(self._root, container_groups(container_id))

    def ceiling(self, cgroup_driver: str) -> GroupLimits | None:
        """See `Inspector.ceiling`."""
        parent = PARENTS.get(cgroup_driver)
        return read_limits(self._root, (parent,)) if parent is not None else None

    async def close(self) -> None:
        """Lets go of the engine."""
        await self._engine.close()
