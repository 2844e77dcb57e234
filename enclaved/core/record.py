"""One sandbox as the core holds it: the mutable truth behind `model.Sandbox`."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Final

from enclaved.agent.link import GuestLink
from enclaved.core.state import SandboxRow
from enclaved.errors import WrongState
from enclaved.metrics import Metrics
from enclaved.model import (
    DEFAULT_TENANT,
    Adjustment,
    Cause,
    PortMapping,
    Sandbox,
    SandboxSpec,
    SandboxState,
    StateChange,
)
from enclaved.runtime.base import ContainerPlan, Counters, Image

HISTORY_MOST: Final = 100
"""Changes of its state that a sandbox remembers."""
BOOT_ID_VARIABLE: Final = "MS_ENCLAVE_BOOT_ID"
_BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True, eq=False)
class SandboxRecord:
    """A sandbox from its admission until it is forgotten. Whoever changes its container holds ``lock``."""

    id: str
    number: int
    """Order of creation, for pages."""
    spec: SandboxSpec
    adjustments: tuple[Adjustment, ...]
    labels: Mapping[str, str]
    uid: int
    directory: Path
    metrics: Metrics
    gid: int = 0
    """Its own number of the range for sandboxes, and the group of its programs. 0 becomes ``uid``.

    ``uid`` is another one where its programs run as the owner of a directory of the host.
    """
    pool_id: str = ""
    """The pool that it is a member of; empty: none."""
    state: SandboxState = SandboxState.INITIALIZING
    state_reason: str = ""
    image: Image | None = None
    container_id: str | None = None
    plan: ContainerPlan | None = None
    """What the engine was given for its container; ``None`` if an earlier daemon made it."""
    link: GuestLink | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    watcher: asyncio.Task[None] | None = None
    expiry: asyncio.TimerHandle | None = None
    is_forgotten: bool = False
    on_forgotten: Callable[[], None] | None = None
    """Drops what is kept of its executions."""
    active_executions: int = 0
    executions_started: int = 0
    """How many there have been, those that run included; what is done to contexts counts as well."""
    counted: Counters | None = None
    """The control group's counters when the last execution ended."""
    born: float = 0.0
    """Monotonic time of its creation. The time to live counts from there."""
    used: float = 0.0
    """Monotonic time of its last use; 0: not yet."""
    used_at: datetime | None = None
    used_noted: float = 0.0
    """What of that is written down."""
    on_used: Callable[[SandboxRecord], None] | None = None
    idle_timer: asyncio.TimerHandle | None = None
    tenant: str = DEFAULT_TENANT
    owner: str = ""
    """The name of the identity that made it."""
    waived: tuple[str, ...] = ()
    """Protections that a grant took from it."""
    command_execution_id: str = ""
    """The execution of the command that was started with it; empty: none."""
    command_due: bool = False
    """Whether that has not begun yet."""
    published_ports: tuple[PortMapping, ...] = ()
    request_id: str = ""
    """The caller's id of the request that made it; empty: none."""
    request_digest: str = ""
    revision: int = 0
    """Of its last change; see `Changes`."""
    told: tuple[SandboxState, Mapping[str, str]] | None = None
    """State and labels as others were told last; ``None``: they have not heard of it."""
    history: deque[StateChange] = field(default_factory=lambda: deque(maxlen=HISTORY_MOST))
    limits_due: bool = False
    """Whether the engine may not have heard of its limits yet."""
    making: asyncio.Timeout | None = None
    """Ends the making of its container and guest, while that lasts."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once nothing is left of it."""
    paused_at: float = 0.0
    """Monotonic time at which it was last seen paused; 0: never."""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.gid = self.gid or self.uid
        self.metrics.sandboxes.moved(None, self.state)

    def enter(self, state: SandboxState, reason: str = "", cause: Cause = Cause.DAEMON) -> None:
        """Changes the state. One that is being deleted stays so, whatever else comes to its end meanwhile."""
        if self.state is SandboxState.DELETING:
            return
        self.metrics.sandboxes.moved(self.state, state)
        self.state, self.state_reason = state, reason
        self.updated_at = datetime.now(UTC)
        self.history.append(StateChange(self.updated_at, state, reason, cause))

    def undo(self, state: SandboxState, reason: str, updated_at: datetime) -> None:
        """Takes the last change of its state back, which could not be written down."""
        self.metrics.sandboxes.moved(self.state, state)
        self.state, self.state_reason, self.updated_at = state, reason, updated_at
        self.history.pop()

    @property
    def was_made(self) -> bool:
        """Whether it could be used once: somebody may have been told of it."""
        never = (SandboxState.INITIALIZING, SandboxState.DELETING)
        return any(change.state not in never for change in self.history)

    def touch(self) -> None:
        """It is used at this moment."""
        self.used, self.used_at = asyncio.get_running_loop().time(), datetime.now(UTC)
        if self.on_used is not None:
            self.on_used(self)

    def forgotten(self) -> None:
        """The record is dropped."""
        self.metrics.sandboxes.moved(self.state, None)
        self.is_forgotten = True
        if self.on_forgotten is not None:
            self.on_forgotten()
        self.stop_clocks()
        self.gone.set()

    def stop_clocks(self) -> None:
        """Lets neither its time to live nor its idle timeout end it."""
        for timer in (self.expiry, self.idle_timer):
            if timer is not None:
                timer.cancel()

    def running_link(self) -> GuestLink:
        """The link to the guest. Raises `WrongState` unless the sandbox runs."""
        if self.state is SandboxState.RUNNING and self.link is not None:
            return self.link
        hint = {
            SandboxState.STOPPED: "start it again first (StartSandbox)",
            SandboxState.PAUSED: "resume it first (ResumeSandbox)",
            SandboxState.INITIALIZING: "wait until it has been created",
            SandboxState.ERROR: "delete it and create another one",
            SandboxState.DELETING: "create another one",
        }.get(self.state, "try again")
        why = f" ({self.state_reason})" if self.state_reason else ""
        text = f"sandbox {self.id!r} is {self.state.value}{why}, not running; {hint}"
        raise WrongState(f"sandbox/{self.id}", self.state.value, SandboxState.RUNNING.value, text)

    @property
    def sleeps_lightly(self) -> bool:
        """Whether it is paused, and to be resumed when it is used."""
        return self.state is SandboxState.PAUSED and self.spec.auto_resume

    def row(self) -> SandboxRow:
        """The sandbox as it is written down."""
        return SandboxRow(
            id=self.id,
            number=self.number,
            spec=self.spec,
            adjustments=self.adjustments,
            labels=self.labels,
            uid=self.uid,
            gid=self.gid,
            directory=str(self.directory),
            container_id=self.container_id,
            image=self.image,
            env=self.env,
            state=self.state,
            state_reason=self.state_reason,
            created_at=self.created_at,
            updated_at=self.updated_at,
            expires_monotonic_s=self.born + self.spec.ttl_s,
            boot_id=boot_id(),
            pool_id=self.pool_id,
            tenant=self.tenant,
            owner=self.owner,
            waived=self.waived,
            command_execution_id=self.command_execution_id,
            command_due=self.command_due,
            published_ports=self.published_ports,
            request_id=self.request_id,
            request_digest=self.request_digest,
            revision=self.revision,
            used_monotonic_s=self.used,
            limits_due=self.limits_due,
            history=tuple(self.history),
        )

    @classmethod
    def of(cls, row: SandboxRow, metrics: Metrics) -> SandboxRecord:
        """Makes the record of a sandbox that an earlier daemon wrote down."""
        now = asyncio.get_running_loop().time()
        if row.boot_id and row.boot_id == boot_id():
            born, used = row.expires_monotonic_s - row.spec.ttl_s, row.used_monotonic_s
        else:  # the machine was started anew, and its clock with it: only the wall clock knows
            born = now - max(0.0, (datetime.now(UTC) - row.created_at).total_seconds())
            used = now if row.used_monotonic_s else 0.0
        return cls(
            id=row.id,
            number=row.number,
            spec=row.spec,
            adjustments=row.adjustments,
            labels=row.labels,
            uid=row.uid,
            gid=row.gid,
            directory=Path(row.directory),
            metrics=metrics,
            pool_id=row.pool_id,
            state=row.state,
            state_reason=row.state_reason,
            image=row.image,
            container_id=row.container_id,
            env=row.env,
            born=born,
            used=used,
            used_at=datetime.now(UTC) - timedelta(seconds=max(0.0, now - used)) if used else None,
            used_noted=used,
            tenant=row.tenant,
            owner=row.owner,
            waived=row.waived,
            command_execution_id=row.command_execution_id,
            command_due=row.command_due,
            published_ports=row.published_ports,
            request_id=row.request_id,
            request_digest=row.request_digest,
            revision=row.revision,
            told=(row.state, dict(row.labels)) if row.revision else None,
            history=deque(row.history, HISTORY_MOST),
            limits_due=row.limits_due,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )

    def snapshot(self, revision: int = 0) -> Sandbox:
        """The sandbox as others see it; with ``revision`` as it is about to be told."""
        return Sandbox(
            id=self.id,
            state=self.state,
            state_reason=self.state_reason,
            spec=self.spec,
            adjustments=self.adjustments,
            labels=self.labels,
            created_at=self.created_at,
            updated_at=self.updated_at,
            expires_at=self.created_at + timedelta(seconds=self.spec.ttl_s),
            image_id=self.image.id if self.image is not None else "",
            active_executions=self.active_executions,
            uid=self.uid,
            tenant=self.tenant,
            revision=revision or self.revision,
            used_at=self.used_at,
            owner=self.owner,
            waived=self.waived,
            command_execution_id=self.command_execution_id,
            published_ports=self.published_ports,
        )


@cache
def boot_id() -> str:
    """Names this run of the machine's kernel; empty where nobody says.

    A service manager that hides it from its services may hand it over in the environment.
    """
    try:
        found = os.environ.get(BOOT_ID_VARIABLE) or _BOOT_ID_FILE.read_text()
    except OSError:
        return ""
    return found.strip().replace("-", "")
