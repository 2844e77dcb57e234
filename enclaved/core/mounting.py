"""What mounts of the host mean for a sandbox: as whom its programs run, and that it got what was granted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from enclaved.agent.handle import RunOptions, wire_name
from enclaved.agent.jobs import encode_job
from enclaved.agent.link import GuestLink
from enclaved.core.host_paths import Found, check_told, look_program, user_for
from enclaved.core.record import SandboxRecord
from enclaved.errors import EngineRefused, InvalidRequest
from enclaved.model import STDERR, Output, PythonJob

UID_SEPARATION: Final = "uid_separation"
"""What a sandbox waives that runs as the owner of a directory: others may run as the same user."""
LOOK_TIMEOUT_S: Final = 20.0
LOOK_OUTPUT_BYTES: Final = 64 * 1024
_LOOK: Final = "look"

Places = Sequence[Found]


def user_of(record: SandboxRecord, places: Places, sandbox_uids: range) -> int:
    """Decides as whom the programs of a sandbox run: as its own user, or as the owner of what they may write to.

    Says in the record what that waives. Raises `InvalidRequest`, `PolicyDenied`.
    """
    writable = [place.mount.host_path for place in places if not place.mount.read_only]
    if writable and record.pool_id:
        text = f"a pool empties its sandboxes after each call, {writable[0]} included; mount it with mode 'ro'"
        raise InvalidRequest.of("spec.volumes", text)
    uid = user_for(places, record.uid, sandbox_uids)
    record.waived = (UID_SEPARATION,) if writable else ()
    return uid


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
