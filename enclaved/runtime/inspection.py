"""The seam for looks at what a runtime really did: what the engine says, and what the kernel has.

Apart from `Runtime`, because only a runtime of containers has anything to look at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from enclaved.runtime.base import ContainerPlan


class Deviation(NamedTuple):
    """A field of a container that is not what the profile says."""

    field: str
    wanted: str
    found: str

    def __str__(self) -> str:
        return f"{self.field} is {self.found}, not {self.wanted}"


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the engine says of its host and of itself."""

    engine_version: str
    cgroup_version: int
    cgroup_driver: str
    lacking: Mapping[str, str]
    """Protections that it says it cannot give, by name, with what it lacks."""
    apparmor: bool
    user_namespaces: bool
    live_restore: bool
    swap_limits: bool
    default_runtime: str
    runtimes: tuple[str, ...]
    engine_id: str = ""
    """What the engine calls itself; empty where it does not say."""


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """The limits of a control group as the kernel has them; ``None``: there is none."""

    memory_bytes: int | None
    swap_bytes: int | None
    """Swap beside the memory."""
    pids: int | None
    cpus: float | None
    counts_swap: bool = True
    """Whether the kernel has a limit for swap at all."""


class Inspector(Protocol):
    """Looks at containers and control groups. Every call has a deadline of its own.

    The methods that ask the engine raise `EngineUnavailable`.
    """

    async def host(self) -> HostFacts:
        """Asks the engine for its host."""
        ...

    async def deviations(self, container_id: str, plan: ContainerPlan) -> Sequence[Deviation]:
        """Compares a container with what was to be made, field by field; empty for one that is gone.

        A plan with an empty ``Image.id`` is one whose paths and arguments are not known any more: then only what does
        not depend on them is compared. Raises `EngineRefused` for an answer that cannot be read.
        """
        ...

    def limits(self, container_id: str) -> GroupLimits | None:
        """Reads the limits of a container's control group; ``None`` where it cannot be seen. Does not block."""
        ...

    def ceiling(self, cgroup_driver: str) -> GroupLimits | None:
        """Reads the limits of the control group above all sandboxes; ``None`` where it cannot be seen."""
        ...
