"""A command as a job."""

from __future__ import annotations

import os
import signal
import socket

from .masks import release_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, NoReturn


def run_command(control: socket.socket, job: Dict[str, Any], settings: Dict[str, Any]) -> NoReturn:
    """Becomes a command. One that cannot be started ends as it would in a shell: 127 or 126."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if job.get("shell") is not None:
        shell = next((path for path in ("/bin/bash", "/usr/bin/bash") if os.path.exists(path)), "/bin/sh")
        arguments = [shell, "-c", job["shell"]]
    else:
        arguments = job["argv"]
    try:
        release_signals()
        os.execvpe(arguments[0], arguments, job["env"])
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "command not found" if missing else getattr(error, "strerror", None) or str(error)
        os.write(2, ("%s: %s\n" % (arguments[0], reason)).encode("utf-8", "surrogateescape"))
        os._exit(127 if missing else 126)
