"""A standby child: it waits for one job, to be a command, a fresh interpreter, a context or to do one thing to a file.

Everything is prepared but the change of user, which comes when it has the job's bytes: until then user code can
neither signal it nor change its limits.
"""

from __future__ import annotations

import json
import os
import signal
import socket

from .claims import encode_claim
from .command import run_command
from .files import run_file_job
from .handover import AT_TERMINAL, DEFAULT_TERM, IN_CONTEXT, install, receive_job, take_terminal
from .libc import SECCOMP_MODE_FILTER, said_by_prctl
from .masks import hold_signals
from .observer import serve_observer
from .python_jobs import rehearse, run_python, serve_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, NoReturn

    DoJob = Callable[[socket.socket, Dict[str, Any], Dict[str, Any]], NoReturn]

# What a process of its own can be asked to do: called with the socket to the guest, the job and the settings.
JOBS: Dict[str, DoJob] = {
    "python": run_python,
    "command": run_command,
    "file": run_file_job,
    "observer": serve_observer,
}


def child_main(control: socket.socket, settings: Dict[str, Any]) -> None:
    """Prepares everything, waits for a job, drops to the sandbox's user and does it."""
    control.sendall(encode_claim({"hello": True}))  # now the guest knows this pid as its own
    if control.fileno() != 3:
        control = socket.socket(fileno=os.dup2(control.detach(), 3))
    os.set_inheritable(3, False)  # no command may have it
    try:
        status = prepare(settings)
    except (OSError, RuntimeError, ValueError) as error:
        control.sendall(encode_claim({"failed": "%s: %s" % (type(error).__name__, error)}))
        os._exit(70)
    control.sendall(encode_claim({"ready": True}))
    handed = receive_job(control)
    install(handed.fds)
    if handed.flags & AT_TERMINAL:
        try:
            take_terminal()
        except OSError as error:  # another program of the sandbox was quicker
            os.write(2, ("the terminal cannot be taken: %s\n" % error.strerror).encode())
            os._exit(126)
    try:
        drop(settings, status)
    except (OSError, RuntimeError, ValueError) as error:  # never run with more
        control.sendall(encode_claim({"failed": "%s: %s" % (type(error).__name__, error)}))
        control.recv(1)  # the guest looks at this process, and kills it
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(status)
    job = json.loads(handed.text)
    if handed.flags & AT_TERMINAL:
        job["env"].setdefault("TERM", DEFAULT_TERM)
    try:
        if job.get("operation") == "wipe":
            os.chmod(settings["working_dir"], 0o700)
        os.chdir(settings["working_dir"])
    except OSError as error:  # an earlier program closed it to itself
        os.write(2, ("%s: %s\n" % (settings["working_dir"], error.strerror)).encode())
        os._exit(126)
    do = serve_context if handed.flags & IN_CONTEXT else JOBS[job["kind"]]
    do(control, job, settings)


def prepare(settings: Dict[str, Any]) -> int:
    """Becomes a process of its own, with everything done that needs no job. Any step that fails ends it.

    Returns a descriptor that tells what this process is allowed at the time when it is read.
    """
    import resource

    hold_signals()
    os.setsid()
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(4, 4096)
    files = settings["open_files_limit"]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if settings["file_size_limit_bytes"]:
        size = settings["file_size_limit_bytes"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    if os.getuid() == 0:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    rehearse()
    return os.open("/proc/self/status", os.O_RDONLY)


def drop(settings: Dict[str, Any], status: int) -> None:
    """Becomes the sandbox's user, without any capability and behind the filter, and makes sure of it in its status."""
    wanted = {b"NoNewPrivs": 1, b"Seccomp": SECCOMP_MODE_FILTER}
    if os.getuid() == 0:  # else these are tests without root: there is nothing to drop
        uid = settings["uid"]
        gid = settings.get("gid") or uid
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or os.getgroups():
            raise RuntimeError("could not become user %d" % uid)
        wanted.update({b"CapInh": 0, b"CapPrm": 0, b"CapEff": 0, b"CapAmb": 0})
    for line in os.pread(status, 16 * 1024, 0).splitlines():
        name, _, value = line.partition(b":")
        if name in wanted and int(value, 16) != wanted.pop(name):
            raise RuntimeError("%s is %s after the drop" % (name.decode(), value.decode().strip()))
    for name in sorted(wanted):
        if said_by_prctl(name) == wanted[name]:
            del wanted[name]
    if wanted:
        raise RuntimeError("the kernel does not say %s" % ", ".join(sorted(map(bytes.decode, wanted))))
