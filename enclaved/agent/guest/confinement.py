"""What programs may ask the kernel for: a filter of system calls and a scope for signals, beside the engine's own.

Both are put on the template, once, and every process that it makes inherits them; nothing takes them off again.
"""

from __future__ import annotations

import errno
import os
import struct

from .libc import PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, libc
from .syscalls import (
    AUDIT_ARCH,
    CLONE,
    CLONE3,
    DENIED,
    MAKES_FILE,
    MODES,
    NAMESPACE_FLAGS,
    NETLINK_FAMILY,
    NETLINK_PROTOCOL,
    OPENAT2,
    SET_ID_BITS,
    SOCKET,
    SOCKET_FAMILIES,
    X32_BIT,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Tuple

    Step = Tuple[int, int, int, int]  # code, jump if true, jump if false, operand: as in struct sock_filter

MACHINES = ("x86_64", "aarch64")

_LOAD, _EQUALS, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of classic BPF
_NUMBER, _ARCH, _ARGUMENT_0 = 0, 4, 16  # offsets in struct seccomp_data; of arguments the low half
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

# Landlock, with the same numbers on all machines.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_CREATE_RULESET_VERSION = 1
_SCOPE_ABI = 6  # the first with scopes: Linux 6.12
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2


def confine(*, keeps_ids: bool = False) -> None:
    """Puts filter and scope on this process and all that it makes. Raises OSError and RuntimeError where it cannot.

    ``keeps_ids``: nobody may make a file with which others would act as its owner or its group.
    """
    library = libc()
    if library is None:
        raise RuntimeError("the interpreter has no ctypes, without which no filter can be set")
    _call(library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    narrow_scope(library)
    install_filter(library, os.uname().machine, keeps_ids=keeps_ids)


def install_filter(library: Any, machine: str, *, keeps_ids: bool = False) -> None:
    """Puts the filter on this process."""
    import ctypes

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]

    code = assemble(filter_steps(machine, keeps_ids=keeps_ids))
    steps = ctypes.create_string_buffer(code, len(code))
    program = Program(len(code) // 8, ctypes.cast(steps, ctypes.c_void_p))
    outcome = library.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
    _call(outcome, "prctl(PR_SET_SECCOMP)")


def narrow_scope(library: Any) -> bool:
    """Keeps signals and abstract sockets of programs among themselves, where the kernel can (6.12 and newer)."""
    import ctypes

    library.syscall.restype = ctypes.c_long
    abi = library.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    if abi < _SCOPE_ABI:
        return False
    # struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped
    attributes = struct.pack("=QQQ", 0, 0, _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL)
    ruleset = library.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    _call(ruleset, "landlock_create_ruleset")
    try:
        _call(library.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)
    return True


def _call(outcome: int, what: str) -> None:
    if outcome < 0:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, "%s: %s" % (what, os.strerror(number)))


def check_machine(machine: str) -> None:
    """Raises RuntimeError if the numbers of a machine's system calls are not known here."""
    if machine not in MACHINES:
        raise RuntimeError("there is no table of system calls for a %r machine, so that no filter can be set" % machine)


def filter_steps(machine: str, *, keeps_ids: bool = False) -> List[Step]:
    """The filter's program for a machine. Raises RuntimeError if its numbers are not known here."""
    check_machine(machine)
    column = MACHINES.index(machine)
    here = [numbers[column] for numbers in DENIED.values()]
    denied = sorted(number for number in here if number is not None)
    steps: List[Step] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUALS, 1, 0, AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, X32_BIT), (_RETURN, 0, 0, _KILL_PROCESS)]
    refusal = _ERRNO | errno.EPERM
    for number in denied:
        steps += [(_EQUALS, 0, 1, number), (_RETURN, 0, 0, refusal)]
    if keeps_ids:
        steps += _mode_steps(column)
    # The C library takes clone in its place, whose flags can be seen.
    steps += [(_EQUALS, 0, 1, CLONE3[column]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    steps += [
        (_EQUALS, 0, 4, CLONE[column]),
        (_LOAD, 0, 0, _ARGUMENT_0),
        (_HAS_BITS, 0, 1, NAMESPACE_FLAGS),
        (_RETURN, 0, 0, refusal),
        (_RETURN, 0, 0, _ALLOW),
    ]
    families = len(SOCKET_FAMILIES)
    steps += [(_EQUALS, 0, families + 5, SOCKET[column]), (_LOAD, 0, 0, _ARGUMENT_0)]
    steps += [(_EQUALS, families + 3 - index, 0, family) for index, family in enumerate(SOCKET_FAMILIES)]
    steps += [(_EQUALS, 0, 2, NETLINK_FAMILY), (_LOAD, 0, 0, _ARGUMENT_0 + 8 * 2), (_EQUALS, 1, 0, NETLINK_PROTOCOL)]
    steps += [(_RETURN, 0, 0, refusal), (_RETURN, 0, 0, _ALLOW)]
    return steps


def _mode_steps(column: int) -> List[Step]:
    """Refuses modes with which others would run a file as its owner or as its group."""
    steps: List[Step] = [(_EQUALS, 0, 1, OPENAT2[column]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for numbers, mode, flags in MODES.values():
        number = numbers[column]
        if number is None:
            continue
        # Without a new file there is no mode, and anything may stand in its place.
        looks = [] if flags is None else [(_LOAD, 0, 0, _ARGUMENT_0 + 8 * flags), (_HAS_BITS, 0, 3, MAKES_FILE)]
        steps += [(_EQUALS, 0, len(looks) + 4, number)] + looks
        steps += [
            (_LOAD, 0, 0, _ARGUMENT_0 + 8 * mode),
            (_HAS_BITS, 0, 1, SET_ID_BITS),
            (_RETURN, 0, 0, _ERRNO | errno.EPERM),
            (_RETURN, 0, 0, _ALLOW),
        ]
    return steps


def assemble(steps: List[Step]) -> bytes:
    """Makes the kernel's array of struct sock_filter out of a program."""
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
