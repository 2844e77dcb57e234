"""What stands before every program of an attack: how it tells what happened to its attempts.

It is part of the program, runs on any Python from 3.8 on, and needs ctypes for raw system calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from enclaved.doctor.attacks.base import Program

_PRELUDE: Final = """\
import ctypes, errno, json, os, platform, select, socket, sys, time
FACTS = json.loads(FACTS_JSON)
NONCE = FACTS["nonce"]
ctypes.CDLL(None).prctl(15, NONCE.encode(), 0, 0, 0)  # its name, by which it and its children are found

def tell(name, value):
    line = ("\\n@%s %s\\n" % (NONCE, json.dumps([name, value]))).encode()
    while line:
        line = line[os.write(1, line):]

def named(number):
    return errno.errorcode.get(number, str(number))

def attempt(name, function, *arguments):
    try:
        result = function(*arguments)
    except OSError as error:
        tell(name, named(error.errno))
        return None
    tell(name, "ok")
    return result

NUMBERS = {
    "acct": (163, 89), "add_key": (248, 217), "bpf": (321, 280), "chroot": (161, 51), "clock_settime": (227, 112),
    "delete_module": (176, 106), "fanotify_init": (300, 262), "finit_module": (313, 273), "fsconfig": (431, 431),
    "fsopen": (430, 430), "fsmount": (432, 432), "init_module": (175, 105), "io_uring_setup": (425, 425),
    "io_uring_register": (427, 427), "kcmp": (312, 272), "kexec_load": (246, 104), "keyctl": (250, 219),
    "lookup_dcookie": (212, 18), "memfd_secret": (447, 447), "mount": (165, 40), "mount_setattr": (442, 442),
    "move_mount": (429, 429), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "open_tree": (428, 428), "perf_event_open": (298, 241), "pidfd_getfd": (438, 438), "pivot_root": (155, 41),
    "process_madvise": (440, 440), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "ptrace": (101, 117), "quotactl": (179, 60), "request_key": (249, 218), "sethostname": (170, 161),
    "setdomainname": (171, 162), "setns": (308, 268), "settimeofday": (164, 170), "swapon": (167, 224),
    "syslog": (103, 116), "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282),
    "vmsplice": (278, 75), "clone": (56, 220),
}

def syscall(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    number = NUMBERS[name][0 if platform.machine() == "x86_64" else 1]
    pads = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = libc.syscall(ctypes.c_long(number), *pads)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result

def call(name, *arguments):
    return attempt(name, syscall, name, *arguments)

def reach(name, family, address):
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(3)
        if attempt(name, lambda: probe.connect(address) or True):
            try:
                probe.sendall(NONCE.encode())
            except OSError:
                pass

def ready():
    tell("ready", True)
    while os.read(0, 4096):
        pass

"""


def with_prelude(program: Program, facts: Mapping[str, Any]) -> str:
    """Returns the text to run: the program with the facts of this run (its nonce, what it may try to reach)."""
    if program.is_shell:
        return program.source.replace("NONCE", str(facts["nonce"]))
    return f"FACTS_JSON = {json.dumps(dict(facts))!r}\n{_PRELUDE}{program.source}"
