"""The template: a clean interpreter that forks standby children ahead of demand. It never sees a job.

All modules of a child's side are imported here, before the first fork; a child can import none of ours any more.
"""

from __future__ import annotations

import os
import socket
import sys

from .child import child_main
from .handover import receive_fds
from .libc import PR_SET_DUMPABLE, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

    from .loader import Bundle


def template_main(fd: int, settings: Dict[str, Any], bundle: Bundle) -> None:
    """Forks a standby child for each request. Returns only in such a child, when its program has ended."""
    import gc

    # Imported for the children, so that none of them has to.
    import builtins  # noqa: F401
    import codecs  # noqa: F401
    import errno  # noqa: F401
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
    gc.collect()
    gc.freeze()
    requests = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    while True:
        message, fds = receive_fds(requests, 16, 1)
        if not message:
            os._exit(0)
        try:
            middle = os.fork()
        except OSError:  # the process or memory limit is reached; the guest sees its socket close
            os.close(fds[0])
            continue
        if middle == 0:
            try:
                if os.fork() != 0:
                    os._exit(0)
            except OSError:
                os._exit(1)
            requests.close()
            child_main(socket.socket(fileno=fds[0]), settings)
            return
        os.close(fds[0])
        os.waitpid(middle, 0)
