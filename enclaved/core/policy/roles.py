"""What a role may have, and the roles that are compiled in. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from enclaved.core.policy.limits import LIMIT_NAMES, LIMITS_OF_ROLES, PolicyLimits
from enclaved.model import DEFAULT_ROLE, EMBEDDED_ROLE, EMPTY, MONITOR_ROLE, Scope

ANY_IMAGE: Final = "**"
ANY: Final = "*"
RUNC: Final = "runc"
"""The name of the engine's own runtime class."""


@dataclass(frozen=True, slots=True)
class VolumeRule:
    """Host directories that may be mounted: one, and all below it."""

    path: str
    """Absolute and normalised."""
    writable: bool = False
    name: str = ""
    """Callers say this name instead of the path, and cannot say the path; empty: they say the path."""


@dataclass(frozen=True, slots=True)
class PortRange:
    """Host ports that may be published, both ends included. 0 to 0 is the choice of the engine."""

    first: int
    last: int

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class ToolRule:
    """What may be said about one tool. ``allowed=None``: every option."""

    allowed: tuple[str, ...] | None = None
    """Options that a caller may set."""
    forced: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    """Options that hold whatever a caller sets."""


@dataclass(frozen=True, slots=True)
class Role:
    """What somebody may have. What is not granted here is refused."""

    name: str
    limits: PolicyLimits = field(default_factory=PolicyLimits)
    scopes: tuple[str, ...] = (Scope.READ, Scope.RUN, Scope.CREATE)
    """What sort of calls are open (`Scope`)."""
    users: tuple[str, ...] = ()
    """Who has this role whatever their token says: ``KIND`` or ``KIND:NAME``, with ``*`` in the name."""
    images: tuple[str, ...] = ()
    """Images by name, with ``*`` for what is no slash and ``**`` for anything, or pinned: ``NAME@sha256:DIGEST``."""
    images_by_digest: bool = False
    """Whether an image must be named, or pinned, by its digest."""
    may_pull: bool = False
    runtime_classes: tuple[str, ...] = (RUNC,)
    """The first is what a caller gets that names none, unless it is a pattern."""
    networks: tuple[str, ...] = ("none",)
    volumes: tuple[VolumeRule, ...] = ()
    ports: tuple[PortRange, ...] = ()
    extra_hosts: bool = False
    command: bool = False
    env_names: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    tool_options: Mapping[str, ToolRule] = field(default_factory=lambda: EMPTY)
    origins: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    """Where each rule was said: its name to "built in", or a file and a line."""

    def origin(self, key: str) -> str:
        """Where a rule was said."""
        return self.origins.get(key, "built in")


RULE_NAMES: Final = (
    "scopes",
    "users",
    "images",
    "images_by_digest",
    "may_pull",
    "runtime_classes",
    "networks",
    "volumes",
    "ports",
    "extra_hosts",
    "command",
    "env_names",
    "tools",
    "tool_options",
)
"""What a role says beside numbers, in the order in which it is shown."""


def default_role(limits: PolicyLimits) -> Role:
    """Makes the role of whoever reaches a daemon that others share: code may run, and nothing else."""
    return Role(
        name=DEFAULT_ROLE,
        limits=limits,
        images=(ANY_IMAGE,),
        may_pull=True,
        runtime_classes=(RUNC, ANY),
        env_names=(ANY,),
        tools=(ANY,),
        origins=_limit_origins(),
    )


def embedded_role(limits: PolicyLimits, working_dir: str = "") -> Role:
    """Makes the role of the program that started a daemon for itself, and so could use the engine without it.

    ``working_dir`` is where that program works; what is below it may be mounted. Empty, or the root: nothing.
    """
    rooted = working_dir.startswith("/") and working_dir != "/"
    return Role(
        name=EMBEDDED_ROLE,
        limits=limits,
        scopes=tuple(Scope),
        images=(ANY_IMAGE, "localhost*/**", "127.0.0.1*/**"),
        may_pull=True,
        runtime_classes=(RUNC, ANY),
        networks=("none", "bridge"),
        volumes=(VolumeRule(working_dir, writable=True),) if rooted else (),
        ports=(PortRange(0, 0), PortRange(1024, 65535)),
        extra_hosts=True,
        command=True,
        env_names=(ANY,),
        tools=(ANY,),
        origins={**_limit_origins(), "volumes": "built in: below the directory in which the caller works"},
    )


def monitor_role(limits: PolicyLimits) -> Role:
    """Makes the role of programs that watch a daemon: they see everything, and change nothing."""
    return Role(name=MONITOR_ROLE, limits=limits, scopes=(Scope.READ, Scope.ADMIN), origins=_limit_origins())


def _limit_origins() -> dict[str, str]:
    own = {"image_default": "setting images.default", "kill_at_pids_limit": "setting sandbox.kill_at_pids_limit"}
    return {name: own.get(name, f"setting limits.{name}") for name in LIMIT_NAMES if name not in LIMITS_OF_ROLES}


@dataclass(frozen=True, slots=True)
class Rules:
    """All roles there are, and what holds whatever the role."""

    limits: PolicyLimits
    """The daemon's own numbers: ``sandboxes_max`` of all callers together, and what pools are made with."""
    roles: Mapping[str, Role]
    protected: tuple[str, ...] = ()
    """Host paths that nobody may mount, beside those that no daemon lets anybody mount."""
    runtime_classes: tuple[str, ...] = ()
    """Those that the operator configured, beside the engine's own."""
    origin: str = "built in"


def built_in_rules(limits: PolicyLimits, *, working_dir: str = "", protected: tuple[str, ...] = ()) -> Rules:
    """Makes the rules of a daemon without a policy file."""
    roles = {DEFAULT_ROLE: default_role(limits), EMBEDDED_ROLE: embedded_role(limits, working_dir)}
    roles[MONITOR_ROLE] = monitor_role(limits)
    return Rules(limits, roles, protected)
