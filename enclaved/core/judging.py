"""Decides of each protection whether it was seen to work. Pure: what was found comes in, states come out.

What the canary's program tells is believed no more than a stranger: a field that is missing or of another type than
it should be speaks against the protection that it was to show.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from enclaved.core.canary_program import NUMBERS_ONLY_THE_ENGINE_REFUSES
from enclaved.model import Protection, ProtectionState, SandboxSpec
from enclaved.model.protections import CEILING, PROFILE, PROTECTION_NAMES, REQUIRED, WHERE_PRESENT
from enclaved.runtime.inspection import Deviation, GroupLimits, HostFacts

KNOWN_RUNTIMES: Final = ("crun", "io.containerd.runc.v2", "oci", "runc")
"""Engines name theirs in different ways; others isolate in a way of their own, which the operator configures."""
OPEN_FILES: Final = 1024
GUEST_OOM_SCORE: Final = "500"
PROGRAM_OOM_SCORE: Final = "1000"

_NO_CAPABILITY: Final = "0" * 16
_GUEST_CAPABILITIES: Final = f"{(1 << 5) | (1 << 6) | (1 << 7):016x}"  # KILL, SETGID, SETUID
_OWN_NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
_INITIAL_NAMESPACES: Final = frozenset(
    {"cgroup:[4026531835]", "ipc:[4026531839]", "pid:[4026531836]", "user:[4026531837]", "uts:[4026531838]"}
)
_ENGINE_REFUSES: Final = ("personality", *NUMBERS_ONLY_THE_ENGINE_REFUSES)
_DEVICES: Final = frozenset({"console", "full", "null", "ptmx", "random", "tty", "urandom", "zero"})
_KERNELS_OWN: Final = frozenset({"cgroup", "cgroup2", "devpts", "mqueue", "proc", "sysfs"})
_OUR_FILES: Final = ("/etc/group", "/etc/hostname", "/etc/hosts", "/etc/passwd", "/etc/resolv.conf")
_OUR_FOLDER: Final = "/run/enclave/"
_WORDS: Final = {**REQUIRED, **WHERE_PRESENT}


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that was seen of one canary."""

    host: HostFacts
    spec: SandboxSpec
    uid: int
    told: Mapping[str, Any]
    """What its program told."""
    deviations: Sequence[Deviation]
    limits: GroupLimits | None
    ceiling: GroupLimits | None
    namespaces: Collection[str]
    """The daemon's own namespaces."""


class _Absent(Exception):
    """The host does not have a protection. The text says what it has instead."""


class _Unseen(Exception):
    """A protection cannot be looked at from here."""


class _Wrong(Exception):
    """A protection does not work. The text says what was seen."""


def judge(found: Findings, *, waived: Collection[str], needs_ceiling: bool) -> tuple[Protection, ...]:
    """Every protection with its state, in the order of their names' list."""
    return tuple(_judged(name, found, waived, needs_ceiling) for name in PROTECTION_NAMES)


def judge_host(host: HostFacts, waived: Collection[str]) -> tuple[Protection, ...]:
    """What the engine's own words decide, before anything is made there."""
    return tuple(
        _failed(name, f"the engine says that it lacks {host.lacking[name]}", waived)
        if name in host.lacking
        else Protection(name, ProtectionState.UNKNOWN)
        for name in PROTECTION_NAMES
    )


def all_failed_by(name: str, why: str) -> tuple[Protection, ...]:
    """One protection that failed so that the others could not be looked at: that cannot be waived."""
    return tuple(
        Protection(one, ProtectionState.FAILED, why) if one == name else Protection(one, ProtectionState.UNKNOWN)
        for one in PROTECTION_NAMES
    )


def _failed(name: str, why: str, waived: Collection[str]) -> Protection:
    return Protection(name, ProtectionState.WAIVED if name in waived else ProtectionState.FAILED, why)


def _judged(name: str, found: Findings, waived: Collection[str], needs_ceiling: bool) -> Protection:
    if name in found.host.lacking:
        return _failed(name, f"the engine says that it lacks {found.host.lacking[name]}", waived)
    try:
        detail = _CHECKS[name](found) or _WORDS[name]
    except _Absent as absent:
        if name == CEILING and needs_ceiling:
            return _failed(name, str(absent), waived)
        return Protection(name, ProtectionState.ABSENT, str(absent))
    except _Unseen as unseen:
        return Protection(name, ProtectionState.UNKNOWN, str(unseen))
    except _Wrong as wrong:
        return _failed(name, str(wrong), waived)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return _failed(name, f"what the canary told of it cannot be read: {error!r}", waived)
    return Protection(name, ProtectionState.EFFECTIVE, detail)


def _need(holds: bool, text: str) -> None:
    if not holds:
        raise _Wrong(text)


def _profile(found: Findings) -> None:
    wrong = [str(one) for one in found.deviations if one.field != "HostConfig.Runtime"]
    _need(not wrong, f"the engine changed what it was given: {'; '.join(wrong[:5])}")


def _runtime(found: Findings) -> str:
    runtime = found.host.default_runtime
    wrong = [str(one) for one in found.deviations if one.field == "HostConfig.Runtime"]
    _need(not wrong, "; ".join(wrong))
    _need(
        runtime in KNOWN_RUNTIMES, f"the engine's default runtime is {runtime!r}, none of {', '.join(KNOWN_RUNTIMES)}"
    )
    return f"the engine's default runtime is {runtime}"


def _guest(found: Findings) -> None:
    guest = found.told["guest"]
    _need(guest["Uid"] == ["0"] * 4, f"PID 1 has the user ids {guest['Uid']}")
    for name in ("CapPrm", "CapEff", "CapBnd"):
        _need(guest[name] == [_GUEST_CAPABILITIES], f"{name} of PID 1 is {guest[name]}, not {_GUEST_CAPABILITIES}")
    for name in ("CapInh", "CapAmb"):
        _need(guest[name] == [_NO_CAPABILITY], f"{name} of PID 1 is {guest[name]}")


def _uid_separation(found: Findings) -> str:
    program, uid = found.told["program"], str(found.uid)
    _need(program["Uid"] == [uid] * 4 and program["Gid"] == [uid] * 4, f"a program's user ids are {program['Uid']}")
    _need(program["Groups"] == [], f"a program has the groups {program['Groups']}")
    for what in ("becoming root", "becoming another user"):
        _need(found.told["refusals"][what] == "EPERM", f"{what} is not refused ({_answer(found, what)})")
    return f"the canary's programs had the user id {uid}"


def _capabilities(found: Findings) -> None:
    program = found.told["program"]
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        _need(program[name] == [_NO_CAPABILITY], f"{name} of a program is {program[name]}")
    bounding = int(program["CapBnd"][0], 16)
    _need(not bounding & ~int(_GUEST_CAPABILITIES, 16), f"CapBnd of a program is {program['CapBnd']}")


def _no_new_privileges(found: Findings) -> None:
    for who in ("guest", "program"):
        _need(found.told[who]["NoNewPrivs"] == ["1"], f"NoNewPrivs of the {who} is {found.told[who]['NoNewPrivs']}")


def _engine_filter(found: Findings) -> None:
    seccomp = found.told["guest"]["Seccomp"]
    _need(seccomp == ["2"], f"PID 1 has no filter (Seccomp: {seccomp})")
    if "Seccomp_filters" in found.told["guest"]:  # Linux 5.9 and newer
        _need(int(found.told["guest"]["Seccomp_filters"][0]) >= 1, "PID 1 has no filter (Seccomp_filters: 0)")
    answers = found.told["engine_refusals"]
    let = [f"{name} ({answers.get(name) or 'it was done'})" for name in _ENGINE_REFUSES if answers.get(name) != "EPERM"]
    _need(
        not let,
        f"it lets calls through that Docker's own profile refuses: {', '.join(let)}; start the engine without "
        "--seccomp-profile, or with one that refuses what Docker's refuses",
    )


def _program_filter(found: Findings) -> None:
    program, guest = found.told["program"], found.told["guest"]
    _need(program["Seccomp"] == ["2"], f"a program has no filter (Seccomp: {program['Seccomp']})")
    _need(found.told["refusals"]["ptrace"] == "EPERM", f"ptrace is not refused ({_answer(found, 'ptrace')})")
    if "Seccomp_filters" in program:  # Linux 5.9 and newer
        ours = int(program["Seccomp_filters"][0]) - int(guest["Seccomp_filters"][0])
        _need(ours >= 1, "a program has no more filters than PID 1")


def _socket_families(found: Findings) -> None:
    _need(found.told["refusals"]["vsock"] == "EPERM", f"a vsock socket is not refused ({_answer(found, 'vsock')})")
    _need(found.told["refusals"]["unix"] == "", f"a unix socket is refused ({_answer(found, 'unix')})")


def _signals(found: Findings) -> None:
    _need(found.told["refusals"]["signal"] == "EPERM", f"a signal to PID 1 is not refused ({_answer(found, 'signal')})")


def _answer(found: Findings, what: str) -> str:
    return str(found.told["refusals"][what]) or "it was done"


def _memory_limit(found: Findings) -> str:
    wanted = found.spec.memory_limit_bytes
    if found.limits is None:
        _need(found.told["killed_for_memory"] is True, "a program that used more than the limit was not killed")
        return "a program that used more was killed"
    _need(
        found.limits.memory_bytes == wanted, f"the control group's limit is {found.limits.memory_bytes}, not {wanted}"
    )
    return f"the control group has the limit of {wanted} bytes"


def _pids_limit(found: Findings) -> str:
    wanted = found.spec.pids_limit
    if found.limits is None:
        _need(0 < found.told["processes"] < wanted, f"a program could start {found.told['processes']} others")
        return "a program could not start more"
    _need(found.limits.pids == wanted, f"the control group's limit is {found.limits.pids}, not {wanted}")
    return f"the control group has the limit of {wanted} processes"


def _cpu_limit(found: Findings) -> None:
    if found.limits is None:
        raise _Unseen("its control group cannot be seen from here")
    cpus = found.limits.cpus
    _need(cpus is not None and cpus <= found.spec.cpu_limit + 0.001, f"the control group's limit is {cpus} CPUs")


def _process_limits(found: Findings) -> None:
    size = max(found.spec.working_dir_size_bytes, found.spec.tmp_size_bytes)
    wanted = {"nofile": OPEN_FILES, "fsize": size, "core": 0}
    told = found.told["limits"]
    _need(told == wanted, f"the limits of a program are {told}, not {wanted}")
    guest = found.told["guest_limits"]
    _need(guest == {name: str(value) for name, value in wanted.items()}, f"the limits of PID 1 are {guest}")


def _read_only_root(found: Findings) -> None:
    root = [one for one in found.told["mounts"] if one["point"] == "/"]
    _need(bool(root) and all("ro" in _options(one) for one in root), "it can be written to")


def _bounded_files(found: Findings) -> None:
    spec, rooms = found.spec, found.told["rooms"]
    sizes = {
        spec.working_dir: spec.working_dir_size_bytes,
        "/tmp": spec.tmp_size_bytes,  # noqa: S108 - the sandbox's own
        "/dev/shm": spec.shm_size_bytes,  # noqa: S108 - the sandbox's own
    }
    for path, size in sizes.items():
        room = rooms[path]
        _need(room["bytes"] == size, f"{path} has {room['bytes']} bytes, not {size}")
        _need(0 < room["files"] <= max(1024, size // 4096), f"{path} has {room['files']} files")
        for flag, name in ((os.ST_NOSUID, "nosuid"), (os.ST_NODEV, "nodev")):
            _need(bool(room["flags"] & flag), f"{path} is not {name}")
    for mount in found.told["mounts"]:
        is_no_place = mount["type"] in _KERNELS_OWN or mount["root"] == "/null" or _is_device(mount)
        if "rw" in _options(mount) and not is_no_place:
            point = mount["point"]
            _need(point in sizes or point == "/dev", f"{point} ({mount['type']}) can be written to")


def _host_files(found: Findings) -> None:
    for mount in found.told["mounts"]:
        point = mount["point"]
        is_fresh = mount["root"] == "/" and mount["type"] == "tmpfs"
        if point == "/" or is_fresh or mount["root"] == "/null" or mount["type"] in _KERNELS_OWN or _is_device(mount):
            continue
        _need(point in _OUR_FILES or point.startswith(_OUR_FOLDER), f"something of the host is mounted at {point}")
        _need("ro" in _options(mount), f"what is mounted at {point} can be written to")


def _is_device(mount: Mapping[str, Any]) -> bool:
    """Whether it is one of the usual devices: in a user namespace they cannot be made, so runtimes mount the host's."""
    name = str(mount["root"]).removeprefix("/")
    return mount["type"] in ("devtmpfs", "tmpfs") and name in _DEVICES and mount["point"] == f"/dev/{name}"


def _options(mount: Mapping[str, Any]) -> list[str]:
    return str(mount["options"]).split(",")


def _no_network(found: Findings) -> None:
    interfaces = found.told["interfaces"]
    _need(interfaces == ["lo"], f"it has the interfaces {', '.join(map(str, interfaces))}")


def _namespaces(found: Findings) -> None:
    told = found.told["namespaces"]
    shared = [name for name in _OWN_NAMESPACES if told[name] in found.namespaces or told[name] in _INITIAL_NAMESPACES]
    _need(not shared, f"it shares namespaces with the host: {', '.join(shared)}")


def _kernel_view(found: Findings) -> None:
    telling = found.told["telling"]
    _need(telling == [], f"these tell of the host: {', '.join(map(str, telling[:8]))}")


def _devices(found: Findings) -> None:
    more = sorted({str(name) for name in found.told["devices"]} - _DEVICES)
    _need(not more, f"it has the devices {', '.join(more[:8])}")


def _oom_preference(found: Findings) -> None:
    told = found.told["oom"]
    _need(told == [PROGRAM_OOM_SCORE, GUEST_OOM_SCORE], f"the scores of a program and of PID 1 are {told}")


def _swap_limit(found: Findings) -> str:
    if found.told["swap"] == ["0"]:
        raise _Absent("this host has no swap")
    if found.limits is None:
        raise _Unseen("its control group cannot be seen from here")
    _need(found.limits.counts_swap, "this host has swap, and its kernel has no limit for it (swapaccount=1)")
    _need(found.limits.swap_bytes == 0, f"{found.limits.swap_bytes} bytes of swap can be used")
    return "the control group lets no swap be used"


def _landlock(found: Findings) -> None:
    layers = found.told["landlock_layers"]
    if layers == -1:
        raise _Absent("the kernel (before 6.12) or the engine's filter has no Landlock with scopes")
    _need(0 <= layers < 16, "a program is in no scope")


def _apparmor(found: Findings) -> str:
    if not found.host.apparmor:
        raise _Absent("the engine lists no AppArmor")
    label = str(found.told["label"])
    _need(label.endswith("(enforce)"), f"the engine lists it, and a program's profile is {label or 'unknown'}")
    return f"programs have the profile {label}"


def _user_namespace(found: Findings) -> str:
    mapping = found.told["uid_map"]
    if mapping[:2] == ["0", "0"]:
        _need(not found.host.user_namespaces, "the engine lists them, and root in a sandbox is root on the host")
        raise _Absent("the engine is not set up for them")
    return f"root in a sandbox is user {mapping[1]} on the host"


def _ceiling(found: Findings) -> str:
    limits = found.ceiling
    if limits is None:
        raise _Absent("the control group above all sandboxes cannot be seen from here")
    if limits.memory_bytes is None or limits.pids is None:
        raise _Absent("the control group above all sandboxes has no limits; `enclaved prepare` sets them")
    return f"all sandboxes together: {limits.memory_bytes} bytes of memory, {limits.pids} processes"


_CHECKS: Final[Mapping[str, Callable[[Findings], str | None]]] = {
    PROFILE: _profile,
    "runtime": _runtime,
    "guest": _guest,
    "uid_separation": _uid_separation,
    "capabilities": _capabilities,
    "no_new_privileges": _no_new_privileges,
    "engine_filter": _engine_filter,
    "program_filter": _program_filter,
    "socket_families": _socket_families,
    "signals": _signals,
    "memory_limit": _memory_limit,
    "pids_limit": _pids_limit,
    "cpu_limit": _cpu_limit,
    "process_limits": _process_limits,
    "read_only_root": _read_only_root,
    "bounded_files": _bounded_files,
    "host_files": _host_files,
    "no_network": _no_network,
    "namespaces": _namespaces,
    "kernel_view": _kernel_view,
    "devices": _devices,
    "oom_preference": _oom_preference,
    "swap_limit": _swap_limit,
    "landlock": _landlock,
    "apparmor": _apparmor,
    "user_namespace": _user_namespace,
    CEILING: _ceiling,
}
