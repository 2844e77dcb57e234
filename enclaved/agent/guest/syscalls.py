"""The system calls that no program in a sandbox needs, and where holes in kernels have been found again and again.

The numbers are each machine's own: those of x86-64 (``arch/x86/entry/syscalls/syscall_64.tbl`` in the kernel's source)
and the generic ones of arm64 (``include/uapi/asm-generic/unistd.h``).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Optional, Tuple

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000  # set in the numbers of a second way to call an x86-64 kernel, which has holes of its own

# What is refused, by name: (number on x86-64, number on arm64); None where there is no such call.
DENIED: Dict[str, Tuple[Optional[int], Optional[int]]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "listmount": (458, 458),
    "lookup_dcookie": (212, 18),
    "memfd_secret": (447, 447),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "remap_file_pages": (216, 234),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "statmount": (457, 457),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
    "vmsplice": (278, 75),
}

# Calls that give files their mode, by name: (numbers, which argument is the mode, which the flags that make a file).
# Where a program may write to a directory of the host, what belongs to the owner of a file or to its group is no longer
# only the sandbox's affair.
MODES: Dict[str, Tuple[Tuple[Optional[int], Optional[int]], int, Optional[int]]] = {
    "chmod": ((90, None), 1, None),
    "creat": ((85, None), 1, None),
    "fchmod": ((91, 52), 1, None),
    "fchmodat": ((268, 53), 2, None),
    "fchmodat2": ((452, 452), 2, None),
    "mknod": ((133, None), 1, None),
    "mknodat": ((259, 33), 2, None),
    "open": ((2, None), 2, 1),
    "openat": ((257, 56), 3, 2),
}
SET_ID_BITS = 0o6000
MAKES_FILE = 0o100 | 0o20000000  # O_CREAT, and the bit of O_TMPFILE that no other flag has
OPENAT2 = (437, 437)  # its mode lies in memory, where the filter cannot look

SOCKET = (41, 198)
SOCKET_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6: what is let through
# AF_NETLINK too, but for NETLINK_ROUTE alone, by which the C library looks at interfaces. Of the others most are seldom
# tested code of the kernel, and by one programs send each other bytes that no control group counts as memory.
NETLINK_FAMILY, NETLINK_PROTOCOL = 16, 0
CLONE = (56, 220)
CLONE3 = (435, 435)
# CLONE_NEWTIME (as a flag of clone only in the low byte, where it would be a signal), _NEWNS, _NEWCGROUP, _NEWUTS,
# _NEWIPC, _NEWUSER, _NEWPID, _NEWNET
NAMESPACE_FLAGS = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
