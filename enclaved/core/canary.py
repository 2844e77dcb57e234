"""The canary: a sandbox of the daemon's own in which every protection is tried, from inside and from outside.

It has the default profile and small limits, is listed nowhere, and is removed when its program has told what it found.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from enclaved.agent.handle import RunOptions, wire_name
from enclaved.agent.jobs import encode_job
from enclaved.core import canary_program
from enclaved.core.background import Background
from enclaved.core.boot import Boot
from enclaved.core.judging import Findings, judge, judge_host
from enclaved.core.record import SandboxRecord
from enclaved.core.spec_fields import MIB
from enclaved.errors import EngineRefused, EngineUnavailable
from enclaved.metrics import Metrics
from enclaved.model import EMPTY, STDOUT, Output, Protection, ProtectionState, PythonJob, SandboxSpec
from enclaved.runtime.inspection import Deviation, Inspector

log = logging.getLogger(__name__)

TTL_S: Final = 120.0
PROGRAM_TIMEOUT_S: Final = 30.0
OUTPUT_LIMIT_BYTES: Final = 512 * 1024
WORKING_DIR: Final = "/sandbox"


class Canary:
    """Makes canaries on one engine and judges what they find."""

    def __init__(
        self,
        *,
        boot: Boot,
        inspector: Inspector,
        background: Background,
        waived: Collection[str],
        needs_ceiling: bool,
    ) -> None:
        self._boot, self._inspector, self._background = boot, inspector, background
        self._waived, self._needs_ceiling = waived, needs_ceiling
        self._removals: set[asyncio.Task[None]] = set()
        self._metrics = Metrics(version="canary")  # whose sandboxes are nobody's
        self._program = Path(canary_program.__file__).read_text()

    async def look(self, image: str) -> tuple[Protection, ...]:
        """Makes a canary of an image and says of each protection whether it works.

        Raises `EngineUnavailable`, and what keeps a sandbox of this image from being made.
        """
        host = await self._inspector.host()
        before = judge_host(host, self._waived)
        if any(one.state is ProtectionState.FAILED for one in before):
            return before
        record = self._record(image)
        self._boot.canaries[record.id] = record
        try:
            await self._boot.up(record, TTL_S)
            if record.container_id is None or record.plan is None:
                raise EngineRefused("look at its canary", "it has no container")
            limits = self._inspector.limits(record.container_id)
            asking = asyncio.ensure_future(self._inspector.deviations(record.container_id, record.plan))
            try:
                told = await self._told(record, exhaust=limits is None)
                deviations = await asking
            finally:
                asking.cancel()
                asking.add_done_callback(_taken_note_of)
            if await self._inspector.host() != host:
                raise EngineUnavailable("engine", "it was replaced by another one while it was looked at")
            found = Findings(
                host=host,
                spec=record.spec,
                uid=record.uid,
                told=told,
                deviations=deviations,
                limits=limits,
                ceiling=self._inspector.ceiling(host.cgroup_driver),
                namespaces=_own_namespaces(),
            )
            return judge(found, waived=self._waived, needs_ceiling=self._needs_ceiling)
        finally:
            removal = self._background.spawn(self._remove(record), f"remove {record.id}")
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)

    async def close(self, deadline_s: float) -> None:
        """Waits until no canary is left, within a deadline."""
        if self._removals:
            await asyncio.wait(self._removals, timeout=deadline_s)

    def _record(self, image: str) -> SandboxRecord:
        spec = SandboxSpec(
            image=image,
            memory_limit_bytes=128 * MIB,
            cpu_limit=1.0,
            pids_limit=64,
            working_dir_size_bytes=8 * MIB,
            tmp_size_bytes=4 * MIB,
            shm_size_bytes=2 * MIB,
            working_dir=WORKING_DIR,
            env_vars=EMPTY,
            tools=None,
            timeout_s=PROGRAM_TIMEOUT_S,
            timeout_max_s=PROGRAM_TIMEOUT_S,
            ttl_s=TTL_S,
            remove_on_exit=True,
            may_pull=False,
        )
        return SandboxRecord(
            id=f"canary-{secrets.token_hex(4)}",
            number=0,
            spec=spec,
            adjustments=(),
            labels=EMPTY,
            uid=self._boot.take_uid(),
            directory=self._boot.new_directory(),
            metrics=self._metrics,
            born=asyncio.get_running_loop().time(),
        )

    async def _told(self, record: SandboxRecord, *, exhaust: bool) -> Mapping[str, Any]:
        """Runs the program in the canary and reads what it tells. Raises `EngineRefused` where it tells nothing."""
        asked = {
            "rooms": [record.spec.working_dir, "/tmp", "/dev/shm"],  # noqa: S108 - the sandbox's own
            "exhaust": exhaust,
            "processes": 4 * record.spec.pids_limit,
            "memory": 2 * record.spec.memory_limit_bytes,
        }
        if record.link is None:
            raise EngineRefused("look at its canary", "its guest is gone")
        code = f"{self._program}\ntell({asked!r})\n"
        options = RunOptions(PROGRAM_TIMEOUT_S, output_limit_bytes=OUTPUT_LIMIT_BYTES)
        _, reader = record.link.start(wire_name("canary", 1), encode_job(PythonJob(code), record.env), options)
        said: dict[int, bytes] = {}
        while (item := await reader.next()) is not None:
            if isinstance(item, Output):
                said[item.channel] = said.get(item.channel, b"") + item.data
        try:
            told = json.loads(said.pop(STDOUT, b""))
        except ValueError:
            told = None
        if not isinstance(told, dict):
            words = b" ".join(said.values()).decode("utf-8", "replace").strip()[-500:]
            raise EngineRefused("look at its canary", f"the canary's program failed: {words or 'it said nothing'}")
        return told

    async def _remove(self, record: SandboxRecord) -> None:
        """Removes a canary. What cannot be removed now is a leftover, which is looked for from time to time."""
        try:
            await self._boot.down(record)
        except (EngineUnavailable, EngineRefused) as error:
            log.warning("canary left for now", extra={"sandbox_id": record.id, "reason": str(error)})
        finally:
            self._boot.canaries.pop(record.id, None)
            self._boot.return_uid(record.gid)
            record.forgotten()


def _taken_note_of(asking: asyncio.Future[Sequence[Deviation]]) -> None:
    """Looks at what a question came to whose answer nobody wants any more: the event loop would complain."""
    if not asking.cancelled():
        asking.exception()


def _own_namespaces() -> frozenset[str]:
    """The namespaces of this process, as far as the kernel tells."""
    with contextlib.suppress(OSError):
        return frozenset(str(link.readlink()) for link in Path("/proc/self/ns").iterdir())
    return frozenset()
