"""The protections of the default profile by name: what is looked at when a daemon starts."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

PROFILE: Final = "profile"
CEILING: Final = "ceiling"

REQUIRED: Final[Mapping[str, str]] = MappingProxyType(
    {
        PROFILE: "the engine keeps every field of the profile as it was given to it",
        "runtime": "the engine runs sandboxes with the runtime that was asked for",
        "guest": "PID 1 is the guest: root in the sandbox with three capabilities and no others",
        "uid_separation": "programs run under a user id of the sandbox's own and can take no other",
        "capabilities": "programs have no capability",
        "no_new_privileges": "no program gains privileges from a file that it starts",
        "engine_filter": "the engine's filter of system calls is in force",
        "program_filter": "our filter of system calls is in force in every program",
        "socket_families": "sockets are of the families unix, inet, inet6 and netlink",
        "signals": "programs cannot signal PID 1",
        "memory_limit": "the control group has the memory limit",
        "pids_limit": "the control group has the limit of processes",
        "cpu_limit": "the control group has the limit of CPU time",
        "process_limits": "open files, the size of a file and core dumps are limited",
        "read_only_root": "the root file system cannot be written to",
        "bounded_files": "every place that can be written to has limits of bytes and of files",
        "host_files": "nothing of the host is mounted but files of ours, read-only",
        "no_network": "there is no interface but the loopback",
        "namespaces": "processes, mounts, network, names, control groups and shared memory are the sandbox's own",
        "kernel_view": "what tells of the host in /proc and /sys is masked or read-only",
        "devices": "there are no devices but those that every program needs",
        "oom_preference": "a lack of memory ends programs before the guest",
    }
)
"""What must work, and in a sentence what that is. A daemon serves without one only if its operator waived it."""

WHERE_PRESENT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "swap_limit": "sandboxes use no swap",
        "landlock": "signals and abstract sockets of programs stay among themselves",
        "apparmor": "an AppArmor profile is on every program",
        "user_namespace": "root in a sandbox is nobody on the host",
        CEILING: "all sandboxes together have a limit of memory and of processes",
    }
)
"""What is reported, and required only where the host has it or the configuration asks for it."""

PROTECTION_NAMES: Final = (*REQUIRED, *WHERE_PRESENT)
