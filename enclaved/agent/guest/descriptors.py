"""How many descriptors PID 1 may have, and when to take no more work so that some are left for its own."""

from __future__ import annotations

import errno
import os

from .limits import OPEN_FILES_MAX, OPEN_FILES_RESERVED


class Descriptors:
    """Knows whether enough are left. The kernel gives the lowest free number, so a high one says that there are few."""

    def __init__(self) -> None:
        self.most = OPEN_FILES_MAX

    def raise_limit(self) -> None:
        """Takes as many as this process may have. Programs are given a limit of their own."""
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.most, hard))

    def check(self, fd: int) -> None:
        """Raises OSError if this descriptor, the newest, is one of the last."""
        if fd >= self.most - OPEN_FILES_RESERVED:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def let_all_open(fd: int, mode: int) -> None:
    """Lets another user open a pipe of ours anew, as through /dev/stdin, where the kernel has modes for pipes."""
    try:
        os.fchmod(fd, mode)
    except PermissionError:  # gVisor has none; inherited descriptors work all the same
        pass
