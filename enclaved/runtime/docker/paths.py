"""Paths in a sandbox: in the form in which the engine compares them, and which of them belong to the system."""

from __future__ import annotations

import posixpath
import re

# Nothing must hide one of these (at it or above it) ...
_NEEDED_PATHS = (
    "/bin",
    "/etc/group",
    "/etc/hosts",
    "/etc/passwd",
    "/etc/resolv.conf",
    "/lib",
    "/lib64",
    "/sbin",
    "/usr/bin",
    "/usr/lib",
    "/usr/local/lib",
)
# ... nor come to lie in one of these.
_FORBIDDEN_TREES = ("/dev", "/proc", "/run/enclave", "/sys")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_PATH_MAX = 4096


def clean_path(path: str) -> str | None:
    """The absolute path in the form in which the engine compares it; ``None`` for what is no such path."""
    if not path.startswith("/") or len(path) > _PATH_MAX or _CONTROL_CHARACTER.search(path):
        return None
    return posixpath.normpath("/" + path.lstrip("/"))


def is_system_path(path: str) -> bool:
    """Whether what is mounted at a path would hide something that a sandbox needs, or lie where only the system is."""
    below = path.rstrip("/") + "/"
    return any(f"{needed}/".startswith(below) for needed in (*_NEEDED_PATHS, *_FORBIDDEN_TREES)) or any(
        below.startswith(f"{tree}/") for tree in _FORBIDDEN_TREES
    )


def is_within(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
