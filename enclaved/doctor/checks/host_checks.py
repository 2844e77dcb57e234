"""Checks of the kernel: its version, and what of it sandboxes use."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from enclaved.doctor.checks.engine_checks import kernel_holes
from enclaved.doctor.checks.findings import Finding, failure, note, ok, warning
from enclaved.doctor.checks.holes import version_of

OLDEST_KERNEL: Final = (5, 4, 0)
LANDLOCK_SCOPES: Final = 6
"""The first ABI that holds signals and abstract sockets inside."""
_MACHINES: Final = ("x86_64", "aarch64")
_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_VERSION_FLAG: Final = 1
_ADJTIMEX_ERROR: Final = 5
_PROC = Path("/proc")


def host_findings(proc: Path = _PROC) -> Iterator[Finding]:
    """Looks at this machine."""
    yield from _kernel(platform.release(), platform.machine(), platform.system())
    yield landlock_finding(_landlock_abi())
    yield _seccomp(proc)
    yield _swap(proc)
    yield from _user_namespaces(proc)
    yield _processes(proc)
    yield _crashes(proc)
    yield _clock()


def _kernel(release: str, machine: str, system: str) -> Iterator[Finding]:
    version = version_of(release)
    if system != "Linux":
        yield note("host.kernel", f"this machine runs {system}; sandboxes run where the engine is")
        return
    if version is None or version < OLDEST_KERNEL:
        yield failure("host.kernel", f"Linux {release} is too old", "run Linux 5.4 or later")
    else:
        yield ok("host.kernel", f"Linux {release}")
    yield from kernel_holes(release)
    if machine not in _MACHINES:
        fix = f"use a machine of these: {', '.join(_MACHINES)}"
        yield failure("host.machine", f"there is no filter of system calls for {machine}", fix)


def landlock_finding(abi: int) -> Finding:
    """Judges the version of Landlock; 0: none."""
    if abi >= LANDLOCK_SCOPES:
        return ok("host.landlock", f"Landlock {abi} holds signals and abstract sockets inside")
    what = f"Landlock {abi} knows no scopes" if abi else "no Landlock"
    return note("host.landlock", f"{what}; the user of its own alone keeps sandboxes apart", "run Linux 6.12 or later")


def _landlock_abi() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_LANDLOCK_VERSION_FLAG))
    return max(0, int(found))


def _seccomp(proc: Path) -> Finding:
    if "Seccomp:" in _text(proc / "self" / "status"):
        return ok("host.seccomp", "the kernel filters system calls")
    return failure("host.seccomp", "the kernel cannot filter system calls", "run a kernel with CONFIG_SECCOMP_FILTER")


def _swap(proc: Path) -> Finding:
    used = _text(proc / "swaps").splitlines()[1:]
    if not used:
        return ok("host.swap", "no swap")
    fix = "swapoff -a, or encrypt it; sandboxes themselves are never swapped"
    return note("host.swap", f"{len(used)} places for swap: memory of the daemon may be written to disk", fix)


def _user_namespaces(proc: Path) -> Iterator[Finding]:
    if _text(proc / "sys/kernel/unprivileged_bpf_disabled").strip() == "0":
        fix = "sysctl kernel.unprivileged_bpf_disabled=1"
        yield note("host.bpf", "every user of the host may load BPF; programs in sandboxes may not", fix)
    if _text(proc / "sys/fs/protected_symlinks").strip() == "0":
        yield warning("host.links", "links in shared directories are not protected", "sysctl fs.protected_symlinks=1")
    else:
        yield ok("host.links", "links in shared directories are protected")


def _processes(proc: Path) -> Finding:
    most = _text(proc / "sys/kernel/pid_max").strip()
    if most.isdigit() and int(most) < 32768:
        return warning(
            "host.processes", f"at most {most} processes and threads at once", "sysctl kernel.pid_max=4194304"
        )
    return ok("host.processes", f"at most {most or 'unknown'} processes and threads at once")


def _crashes(proc: Path) -> Finding:
    """A program that is started for each crash reads a stranger's memory as root, whatever limit of size that had."""
    handler = _text(proc / "sys/kernel/core_pattern").strip()
    if handler.startswith("|"):
        what = (
            f"each crash in a sandbox starts {handler[1:].split(' ')[0]!r} on the host, as root and beyond all limits"
        )
        return warning("host.crashes", what, "sysctl kernel.core_pattern=core")
    return ok("host.crashes", "crashes start no program")


def _clock() -> Finding:
    """Asks the kernel whether something keeps its clock right."""
    state = _adjtimex_state()
    if state == _ADJTIMEX_ERROR or time.time() < 1.7e9:
        what = "nothing keeps this machine's clock right; certificates, tokens and logs depend on it"
        return note("host.clock", what, "run an NTP client")
    return ok("host.clock", "the clock is kept right")


def _adjtimex_state() -> int:
    """Returns the state of the kernel's clock, 5 if it is not synchronised; reads only."""
    area = ctypes.create_string_buffer(512)  # zeroes: modes 0 changes nothing
    return int(ctypes.CDLL(None, use_errno=True).adjtimex(area)) if hasattr(os, "uname") else 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
