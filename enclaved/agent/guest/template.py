"""The template: a clean interpreter that forks standby children ahead of demand. It never sees a job.

All modules of a child's side are imported here, before the first fork; a child can import none of ours any more.
"""

from __future__ import annotations

import errno
import os
import socket
import sys

from .child import child_main
from .claims import encode_claim
from .confinement import confine
from .handover import receive_fds
from .libc import PR_SET_DUMPABLE, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

    from .loader import Bundle


def template_main(fd: int, settings: Dict[str, Any], bundle: Bundle) -> None:
    """Forks a standby child for each request. Returns only in such a child, when its program has ended."""
    import gc

    # Imported for the children, so that none of them has to.
    import builtins  # noqa: F401
    import codecs  # noqa: F401
    import io  # noqa: F401
    import linecache  # noqa: F401
    import resource  # noqa: F401
    import stat  # noqa: F401
    import atexit  # noqa: F401
    import threading  # noqa: F401
    import traceback  # noqa: F401
    import types  # noqa: F401

    bundle.forget()
    sys.path[:] = [entry for entry in sys.path if entry]  # without the place that -c puts first
    sys.argv[:] = [""]
    os.environ.clear()  # each job brings its own
    compile("", "", "exec")  # the first one of a process takes a millisecond
    prctl(PR_SET_DUMPABLE, 1)  # changes nothing here, but the library is loaded
    unconfined = ""
    try:
        confine(keeps_ids=settings.get("writes_on_host") is True)
    except (OSError, RuntimeError) as error:  # every child says it, and none runs anything
        unconfined = "its programs cannot be confined: %s" % error
    gc.collect()
    gc.freeze()
    requests = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    while True:
        message, fds = receive_fds(requests, 16, 1)
        if not message:
            os._exit(0)
        why = unconfined or fork_child(requests, fds[0], settings)
        if why is None:
            return
        if why:
            try:  # the guest sees its socket close after it
                os.write(fds[0], encode_claim({"failed": why}))
            except OSError:
                pass
        os.close(fds[0])


def fork_child(requests: socket.socket, fd: int, settings: Dict[str, Any]) -> Optional[str]:
    """Makes one child. Returns why there is none, empty if there is one, and None in the child after its program."""
    try:
        middle = os.fork()
    except OSError as error:
        return why_not(error.errno or 0)
    if middle == 0:
        try:
            if os.fork() != 0:
                os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
        requests.close()
        child_main(socket.socket(fileno=fd), settings)
        return None
    _, status = os.waitpid(middle, 0)
    return why_not(os.WEXITSTATUS(status) if os.WIFEXITED(status) else errno.ENOMEM) if status else ""


def why_not(number: int) -> str:
    """What keeps the kernel from making another process, in words."""
    limits = {errno.EAGAIN: "its limit of processes is reached", errno.ENOMEM: "its memory limit is reached"}
    return limits.get(number) or os.strerror(number)
