"""The connection that a handle speaks through, and what a guest says of executions when it comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from enclaved.agent.handle import Handle


class Sender(Protocol):
    """The connection that a handle speaks through."""

    sandbox_id: str
    handles: dict[str, Handle]

    @property
    def connected(self) -> bool:
        """Whether the guest is there."""
        ...

    @property
    def congested(self) -> bool:
        """Whether so much waits for the guest that nothing more may be said but what replaces other news."""
        ...

    def send(self, header: Mapping[str, Any], payload: bytes = b"") -> None:
        """Sends a frame if the guest is there."""
        ...


@dataclass(frozen=True, slots=True)
class Hold:
    """What a guest that came back says of an execution that it has."""

    ended: bool
    stdin_offset: int = 0
    """Bytes of input that it has."""
    stdin_ended: bool = False
    report: Mapping[str, Any] | None = None
    """Its `finished`, if that has come already."""


class Nobody:
    """The connection of a sandbox that has no guest any more."""

    connected = False
    congested = False

    def __init__(self, sandbox_id: str) -> None:
        self.sandbox_id = sandbox_id
        self.handles: dict[str, Handle] = {}

    def send(self, header: Mapping[str, Any], payload: bytes = b"") -> None:
        """Sends nothing."""
