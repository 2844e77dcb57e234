"""Tells without a look into them whether the places where programs may write are as they were when all began."""

from __future__ import annotations

import os

from .traces import keys, mounts, objects

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

    State = Tuple[int, ...]

PRIVATE_MODE = 0o700


class Places:
    """The working directory and the others. PID 1 may not read all of them, but their file systems count what is there.

    That is enough for a place that is a file system of its own, which was empty. Of any other place nothing is known.
    """

    def __init__(self, settings: Dict[str, Any]) -> None:
        self.settings = settings
        self.at_start = self.states()

    def states(self) -> Optional[Dict[str, State]]:
        """What the file systems count; None if one of them cannot tell."""
        working_dir, scratch_dirs = self.settings["working_dir"], list(self.settings["scratch_dirs"])
        if not scratch_dirs:  # this is no container
            return None
        try:
            return {place: _state(place) for place in [working_dir] + scratch_dirs if os.path.isdir(place)}
        except OSError:
            return None

    def report(self) -> Optional[Dict[str, Any]]:
        """What a wipe would say if it found nothing to do; None if there may be something. No program may run."""
        working_dir, uid = self.settings["working_dir"], self.settings["uid"]
        states = self.states()
        if states is None or states != self.at_start or objects(uid):
            return None
        if os.stat(working_dir).st_mode & 0o7777 != PRIVATE_MODE:
            return None
        report: Dict[str, Any] = dict.fromkeys(("removed", "left", "objects_removed", "objects_left"), 0)
        report.update(processes=0, variables=0, keys=keys(uid), mounts=mounts(self.settings["owns_mounts"]))
        return report


def _state(place: str) -> State:
    """The numbers of a file system. Raises OSError where they do not tell whether something is in it."""
    if not os.path.ismount(place):
        raise OSError("not a file system of its own")
    about, counts = os.stat(place), os.statvfs(place)
    attributes = len(os.listxattr(place))
    if not counts.f_files:  # one that does not count, like that of message queues
        return about.st_dev, about.st_mode, attributes, len(os.listdir(place))
    used, blocks = counts.f_files - counts.f_ffree, counts.f_blocks - counts.f_bfree
    return about.st_dev, about.st_mode, attributes, used, blocks
