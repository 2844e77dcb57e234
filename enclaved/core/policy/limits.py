"""The numbers of a role: what a sandbox gets without asking, and the most that it may have."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from enclaved.core.spec_fields import CPU_MIN, MEMORY_MIN_BYTES, MIB, PIDS_MIN, TTL_MIN_S

LIMITS_OF_ROLES: Final = (
    "working_dir_size_default_bytes",
    "tmp_size_default_bytes",
    "working_dir_size_max_bytes",
    "tmp_size_max_bytes",
    "output_default_bytes",
    "output_max_bytes",
    "executions_max",
    "creates_per_minute",
    "executions_per_minute",
)
"""Numbers that only roles have, not the configuration's ``[limits]``; 0: no limit."""


@dataclass(frozen=True, slots=True)
class PolicyLimits:
    """The numbers of one role. Every default lies between the least that works and its maximum."""

    memory_default_bytes: int = 512 * MIB
    memory_max_bytes: int = 4096 * MIB
    cpu_default: float = 1.0
    cpu_max: float = 2.0
    pids_default: int = 256
    pids_max: int = 1024
    timeout_default_s: float = 30.0
    timeout_max_s: float = 3600.0
    ttl_default_s: float = 86400.0
    ttl_max_s: float = 604800.0
    idle_timeout_default_s: float = 0.0
    """Idle timeout of a sandbox whose caller asks for none; 0: none, or the longest that there is."""
    idle_timeout_max_s: float = 0.0
    """Longest idle timeout; 0: any, and none at all."""
    sandboxes_max: int = 200
    executions_per_sandbox_max: int = 100
    image_default: str = "python:3.11-slim"
    kill_at_pids_limit: bool = False
    """Whether an execution that meets the limit of processes is killed; otherwise its fork fails and it goes on."""
    working_dir_size_default_bytes: int = 0
    """Room in the working directory, as far as memory allows it; 0: 128 MiB, or the most that there is."""
    tmp_size_default_bytes: int = 0
    """Room in /tmp, as far as memory allows it; 0: 64 MiB, or the most that there is."""
    working_dir_size_max_bytes: int = 0
    """Most room in the working directory; 0: as much as fits into the memory limit."""
    tmp_size_max_bytes: int = 0
    """Most room in /tmp; 0: as much as fits into the memory limit."""
    output_default_bytes: int = 0
    """Output of an execution whose caller sets no limit; 0: none, or the most that there is."""
    output_max_bytes: int = 0
    """Most output of an execution; 0: any."""
    executions_max: int = 0
    """Executions at once in all sandboxes of one identity; 0: any."""
    creates_per_minute: int = 0
    """Sandboxes that one identity may make in a minute; 0: any."""
    executions_per_minute: int = 0
    """Executions that one identity may start in a minute; 0: any."""

    def __post_init__(self) -> None:
        """Raises `ValueError` naming the limit that contradicts another, for whoever wrote the configuration."""
        for default, maximum, least in (
            ("memory_default_bytes", "memory_max_bytes", MEMORY_MIN_BYTES),
            ("cpu_default", "cpu_max", CPU_MIN),
            ("pids_default", "pids_max", PIDS_MIN),
            ("timeout_default_s", "timeout_max_s", 0.001),
            ("ttl_default_s", "ttl_max_s", TTL_MIN_S),
        ):
            if not least <= getattr(self, default) <= getattr(self, maximum) < float("inf"):
                raise ValueError(f"{default} must be at least {least} and at most {maximum}, which must be finite")
        if not 0 <= self.idle_timeout_default_s < float("inf") or not 0 <= self.idle_timeout_max_s < float("inf"):
            raise ValueError("idle_timeout_default_s and idle_timeout_max_s must be 0 or more, and finite")
        if 0 < self.idle_timeout_max_s < self.idle_timeout_default_s:
            raise ValueError("idle_timeout_default_s must be at most idle_timeout_max_s")
        for name in ("working_dir_size", "tmp_size", "output"):
            if 0 < getattr(self, f"{name}_max_bytes") < getattr(self, f"{name}_default_bytes"):
                raise ValueError(f"{name}_default_bytes must be at most {name}_max_bytes")
        for count in ("sandboxes_max", "executions_per_sandbox_max"):
            if getattr(self, count) < 1:
                raise ValueError(f"{count} must be at least 1")
        for count in LIMITS_OF_ROLES:
            if getattr(self, count) < 0:
                raise ValueError(f"{count} must be 0 or more")
        if not self.image_default:
            raise ValueError("image_default must name an image")


LIMIT_NAMES: Final = tuple(field.name for field in fields(PolicyLimits))
