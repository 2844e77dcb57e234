"""What mounts of the host mean for a sandbox: as whom its programs run, and that it got what was granted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from enclaved.agent.handle import RunOptions, wire_name
from enclaved.agent.jobs import encode_job
from enclaved.agent.link import GuestLink
from enclaved.core.host_paths import Found, check_told, found, look_program, user_for
from enclaved.core.outside_look import check_from_outside
from enclaved.core.record import SandboxRecord
from enclaved.errors import EnclaveError, EngineRefused, InvalidRequest, PolicyDenied
from enclaved.model import EMBEDDED_ROLE, STDERR, Output, PythonJob
from enclaved.runtime.base import Runtime

log = logging.getLogger(__name__)

UID_SEPARATION: Final = "uid_separation"
"""What a sandbox waives that runs as the owner of a directory: others may run as the same user."""
LOOK_TIMEOUT_S: Final = 20.0
LOOK_OUTPUT_BYTES: Final = 64 * 1024
_LOOK: Final = "look"

Places = Sequence[Found]


@dataclass(slots=True)
class _Held:
    """What one sandbox has mounted, or is about to."""

    places: Places
    is_settled: bool = False
    """Whether the engine has mounted it, so that it stays what it is."""


class Mounting:
    """Knows what sandboxes have mounted.

    Who can write to a directory can put something else in the place of what lies in it. An image that was made for that
    could then tell the daemon what it wants to hear (`look_again`). So nothing is mounted for somebody else's request
    out of a directory to which another sandbox can write at that moment. The program that embeds its daemon could mount
    anything without it, so it is not held up.
    """

    def __init__(self, runtime: Runtime | None = None) -> None:
        """Without a runtime nothing is looked at from outside."""
        self._runtime = runtime
        self._held: dict[SandboxRecord, _Held] = {}

    def user_of(self, record: SandboxRecord, places: Places, sandbox_uids: range) -> int:
        """Decides as whom the programs of a sandbox run: as its own user, or as the owner of what they may write to.

        Says in the record what that waives. What is to be mounted counts as in use from now on, until `leave`. Raises
        `InvalidRequest`, `PolicyDenied`.
        """
        writable = [place.mount.host_path for place in places if not place.mount.read_only]
        if writable and record.pool_id:
            text = f"a pool empties its sandboxes after each call, {writable[0]} included; mount it with mode 'ro'"
            raise InvalidRequest.of("spec.volumes", text)
        uid = user_for(places, record.gid, sandbox_uids)
        for other, held in self._held.items():
            if other is not record:
                _check_apart(record, places, other, held.places)
                if not held.is_settled:
                    _check_apart(other, held.places, record, places)
        if places:
            self._held[record] = _Held(places)
        record.waived = (UID_SEPARATION,) if writable else ()
        return uid

    async def look_again(self, record: SandboxRecord, link: GuestLink, places: Places) -> None:
        """Makes sure of what was mounted: from outside where that is possible, and from inside that it can be read.

        Raises `EngineUnavailable`, and as `check_from_outside` and `look_again`.
        """
        status = None
        if self._runtime is not None and record.container_id is not None:
            status = await self._runtime.status(record.container_id)
        pid, container_id = status.pid if status is not None else 0, record.container_id or ""
        if not await asyncio.to_thread(check_from_outside, pid, container_id, places, record.id):
            log.info("mounts looked at from inside alone", extra={"sandbox_id": record.id})
        await look_again(record, link, places)
        self._held[record].is_settled = True

    def take_up(self, record: SandboxRecord) -> None:
        """Knows of a sandbox of an earlier daemon. Blocks on the disk."""
        if record.container_id is not None and record.spec.mounts:
            with contextlib.suppress(EnclaveError), found(record.spec.mounts) as places:
                self._held[record] = _Held(places, is_settled=True)

    def leave(self, record: SandboxRecord) -> None:
        """A sandbox has no container any more."""
        self._held.pop(record, None)


def _check_apart(lower: SandboxRecord, below: Places, upper: SandboxRecord, above: Places) -> None:
    """Looks whether nothing of one sandbox lies in what another can write to. Raises `PolicyDenied`."""
    if lower.spec.role == EMBEDDED_ROLE:
        return
    for place in below:
        for around in above:
            if not around.mount.read_only and (around.device, around.inode) in place.above:
                where = f"{place.mount.host_path} (of sandbox {lower.id!r}) lies in {around.mount.host_path}"
                text = f"{where}, to which sandbox {upper.id!r} can write, so something else could come in its place"
                raise PolicyDenied("volumes", "spec.volumes", f"{text}; mount the whole, or one after the other")


async def look_again(record: SandboxRecord, link: GuestLink, places: Places) -> None:
    """Has the sandbox's user look whether what was mounted is what was found on the host.

    Nobody else has run anything there yet. Raises `EngineRefused` if it is something else or cannot be read.
    """
    job = encode_job(PythonJob(look_program(places), context=None), record.env)
    options = RunOptions(LOOK_TIMEOUT_S, LOOK_OUTPUT_BYTES)
    handle, reader = link.start(wire_name(_LOOK, record.number), job, options)
    told, said = bytearray(), bytearray()
    while (item := await reader.next()) is not None:
        if isinstance(item, Output):
            (said if item.channel == STDERR else told).extend(item.data)
    report = await handle.finished
    if report.get("exit_code") != 0:
        words = bytes(said[-500:]).decode("utf-8", "replace").strip() or "it does not say why"
        why = f"its programs cannot read what is mounted: {words.splitlines()[-1]}"
        raise EngineRefused(f"start sandbox {record.id!r}", why)
    check_told(places, bytes(told), record.id)
