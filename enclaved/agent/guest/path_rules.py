"""Which paths an operation on files may touch, beyond what the user may: the options of a tool."""

from __future__ import annotations

import errno
import os

from .paths import PathRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

    from .paths import Place


def check_rules(place: Place, job: Dict[str, Any], working_dir: str) -> None:
    """Raises PathRefused for a place that the job's rules exclude, wherever its path led through links."""
    rules = job.get("rules")
    if rules is None:
        return
    real = os.path.realpath(working_dir)
    allowed = rules["allowed"]
    if allowed is not None and not any(_is_within(place.path, _entry(each, working_dir, real)) for each in allowed):
        raise PathRefused(errno.EPERM, "the path is not allowed (allowed_paths)")
    written = os.path.normpath(os.path.join(working_dir, job["path"]))
    for each in rules["blocked"]:
        entry = _entry(each, working_dir, real)
        for blocked in (entry, os.path.realpath(entry)):
            if _is_within(place.path, blocked) or _is_within(written, blocked):
                raise PathRefused(errno.EPERM, "the path is not allowed (blocked_paths)")
            if job["operation"] == "delete" and _is_within(blocked, place.path):
                raise PathRefused(errno.EPERM, "what is not allowed lies in it (blocked_paths)")
    size_max = rules["size_max_bytes"]
    if size_max is not None and job["operation"] == "read":
        size = place.stat().st_size
        if size > size_max:
            text = "the file has %d bytes, and at most %d are allowed (max_file_size)" % (size, size_max)
            raise PathRefused(errno.EFBIG, text)


def _entry(path: str, working_dir: str, real: str) -> str:
    """An entry of a list as paths look after their links were followed, as far as that is ours to say."""
    whole = os.path.normpath(os.path.join(working_dir, path))
    return real + whole[len(working_dir) :] if _is_within(whole, working_dir) else whole


def _is_within(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")
