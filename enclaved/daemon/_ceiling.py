"""The limits of all sandboxes together, set before a daemon starts, by somebody who may."""

from __future__ import annotations

import os
from pathlib import Path

from enclaved.config import Settings
from enclaved.runtime.docker.cgroup import DEFAULT_ROOT
from enclaved.runtime.docker.group_limits import write_ceiling
from enclaved.runtime.inspection import GroupLimits


def prepare(settings: Settings, root: Path = DEFAULT_ROOT) -> GroupLimits:
    """Gives the control group of all sandboxes the limits of the configuration, and says which. Raises `OSError`."""
    memory_bytes = settings.ceiling.memory_bytes or _host_memory_bytes() * 3 // 4
    pids = settings.ceiling.pids
    write_ceiling(root, memory_bytes, pids)
    return GroupLimits(memory_bytes=memory_bytes, swap_bytes=0, pids=pids, cpus=None)


def _host_memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
