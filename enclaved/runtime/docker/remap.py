"""Engines that give containers user ids of their own (user namespaces): what they say of it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

_ROOT_DIR_NAME = re.compile(r"([0-9]{1,10})\.([0-9]{1,10})")
_UID_MAX = 2**32 - 2


def maps_users(info: Mapping[str, Any]) -> bool:
    """Whether user ids in containers are not those of the host, by the answer of ``GET /info``."""
    options = [str(option).split(",")[0] for option in info.get("SecurityOptions") or ()]
    return "name=userns" in options or "name=rootless" in options


def mapped_root(info: Mapping[str, Any]) -> int | None:
    """The host's user id of those who are root in containers; ``None`` where the engine does not say it.

    An engine with ``userns-remap`` keeps its files in a directory of that name: ``/var/lib/docker/100000.100000``.
    """
    found = _ROOT_DIR_NAME.fullmatch(posixpath.basename(str(info.get("DockerRootDir", "")).rstrip("/")))
    if found is None or not maps_users(info):
        return None
    uid = int(found[1])
    return uid if 0 < uid <= _UID_MAX else None
