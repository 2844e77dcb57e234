"""Finds on the host the interpreter that the guest brings along where an image has no Python.

``scripts/build-guest-runtime`` makes it: a folder that sandboxes see read-only at ``/run/enclave/rt``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

FORMAT = 1
"""The form of the folder that this version can use, as its manifest names it."""
SYSTEM_PLACE = Path("/usr/local/lib/ms-enclave/guest-runtime")
_MANIFEST_BYTES_MAX = 4096


def find_guest_runtime(configured: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Returns the folder of the guest's own interpreter; ``None`` if there is none.

    Looks where the configuration says, else in the place for all users and in the cache of the daemon's user. The path
    is that of the folder itself, not of a link to it: a newer one does not take the place of one that is in use.
    """
    for place in [Path(configured)] if configured else _usual_places(environ):
        if _is_whole(place):
            return place.resolve()
    return None


def _usual_places(environ: Mapping[str, str]) -> list[Path]:
    cache = environ.get("XDG_CACHE_HOME") or (f"{environ['HOME']}/.cache" if environ.get("HOME") else "")
    return [SYSTEM_PLACE, *([Path(cache) / "ms-enclave" / "guest-runtime"] if cache else [])]


def _is_whole(place: Path) -> bool:
    try:
        with (place / "manifest.json").open("rb") as file:
            manifest = json.loads(file.read(_MANIFEST_BYTES_MAX))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT
