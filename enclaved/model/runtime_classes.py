"""What can isolate a sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from enclaved.model.engine import Channel

RUNC: Final = "runc"
"""The class of sandboxes whose caller and role ask for no other: the engine's own runtime."""


@dataclass(frozen=True, slots=True)
class RuntimeClass:
    """A runtime of the engine, as callers may name it."""

    name: str
    engine_runtime: str
    """What the engine calls it."""
    channel: Channel = Channel.SOCKET
    """How its sandboxes are reached."""
    pids_extra: int = 0
    """Processes and threads that the runtime may have on the host beside those of programs."""
