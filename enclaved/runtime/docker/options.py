"""Turns the plan of a sandbox into the complete create body of the Docker API: the hardened profile, in one place.

Pure: no I/O. What a caller may choose arrives as typed numbers and paths in the plan, everything else is written here,
so no plan can ask for a capability, a device, a namespace of the host or a mount of its own. Fields that Docker would
otherwise fill from the image (entry point, user, health check, volumes, environment) are always set.
"""

from __future__ import annotations

import math
import re
from typing import Any

from enclaved.errors import EngineRefused, ImageUnusable, InvalidRequest
from enclaved.model import Network, SandboxSpec
from enclaved.runtime.base import HOST_NAME, ContainerPlan, attached_guest_argv, guest_argv
from enclaved.runtime.docker.facts import EngineFacts
from enclaved.runtime.docker.granted import exposed_ports, host_mounts, left_volumes, network_fields, owner_mark
from enclaved.runtime.docker.paths import clean_path, is_system_path

GUEST_FILE = "/run/enclave/guest.py"
INTERPRETER_DIR = "/run/enclave/rt"
"""What scripts/build-guest-runtime makes is made for this place."""
SOCKET_DIR = "/run/enclave/socket"
SOCKET_PATH = f"{SOCKET_DIR}/agent.sock"
GUEST_CAPABILITIES = ("SETUID", "SETGID", "KILL")
CGROUP_PARENTS = {"cgroupfs": "/enclaved", "systemd": "enclaved.slice"}
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

VOLUME_SIZE_BYTES = 16 * 1024 * 1024
"""Size of the tmpfs that takes the place of a volume which the image declares."""
VOLUMES_MAX = 16
BYTES_PER_INODE = 8192
INODES_MIN = 1024

# These two fields replace the engine's lists instead of adding to them, so the engine's come first. What an engine or
# a kernel does not have is skipped by the engine.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    # Ours: what tells the host's hardware and load apart from another's. Python needs none of it.
    "/proc/cmdline",
    "/proc/interrupts",
    "/sys/block",
    "/sys/bus",
    "/sys/class",
    "/sys/dev",
    "/sys/devices/virtual/dmi",
    "/sys/devices/virtual/powercap",
    "/sys/fs",
    "/sys/kernel",
    "/sys/module",
    "/sys/power",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_SANDBOX_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


def container_name(plan: ContainerPlan) -> str:
    """The container's name, the same for every attempt to create it: ``enclaved-<sandbox id>-<8 hex of its owner>``.

    So a container whose id never reached us can still be removed. Raises `InvalidRequest` for an id that is no name.
    """
    sandbox_id = plan.settings.sandbox_id
    if not _SANDBOX_ID.fullmatch(sandbox_id):
        raise InvalidRequest.of(
            "sandbox_id", "use 1 to 128 letters, digits, dots, dashes and underscores, starting with a letter or digit"
        )
    return f"enclaved-{sandbox_id}-{owner_mark(plan.labels)}"


def create_body(plan: ContainerPlan, facts: EngineFacts) -> dict[str, Any]:
    """The complete body of ``POST /containers/create``.

    Raises `InvalidRequest` for numbers that Docker reads as "unlimited" (0 and less) and for a working directory that
    would hide the system, `ImageUnusable` for volumes that no tmpfs can take the place of.
    """
    return {
        # By digest: a tag may have moved since the image was looked at.
        "Image": plan.image.id,
        # Uid 0 inside, and the group under which the daemon's socket can be reached. Programs give up both.
        "User": f"0:{_at_least('group_id', plan.group_id, 0)}",
        "Entrypoint": _entrypoint(plan),
        "Cmd": [],
        "Env": _guest_env(plan),
        "WorkingDir": "/",
        "Labels": dict(plan.labels),
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "Hostname": HOST_NAME,
        "NetworkDisabled": plan.spec.network is Network.NONE,
        "ExposedPorts": exposed_ports(plan),
        "Tty": False,
        # Open without "once": who attaches later goes on where another one stopped.
        "OpenStdin": bool(plan.guest_arguments),
        "StdinOnce": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "HostConfig": _host_config(plan, facts),
    }


def usable_volumes(image: str, volumes: tuple[str, ...]) -> tuple[str, ...]:
    """The paths of an image's volumes as the engine will mount them, sorted.

    Raises `ImageUnusable` if there are more than `VOLUMES_MAX`, or one that cannot be replaced by a bounded tmpfs.
    """
    if len(volumes) > VOLUMES_MAX:
        raise ImageUnusable(image, f"it declares {len(volumes)} volumes; at most {VOLUMES_MAX} are supported")
    clean = set()
    for volume in volumes:
        path = clean_path(volume)
        if path is None or is_system_path(path):
            raise ImageUnusable(
                image,
                f"it declares the volume {volume!r}, which cannot be replaced by a bounded one; "
                "build a variant of it without that VOLUME",
            )
        clean.add(path)
    return tuple(sorted(clean))


def resource_limits(spec: SandboxSpec, facts: EngineFacts) -> dict[str, Any]:
    """The limits that can change while a container lives. Raises `InvalidRequest` for what means "unlimited"."""
    memory = _at_least("spec.memory_limit_bytes", spec.memory_limit_bytes, 1)
    return {
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": _nano_cpus(spec.cpu_limit, facts.cpus),
        "PidsLimit": _at_least("spec.pids_limit", spec.pids_limit, 1),
    }


def _host_config(plan: ContainerPlan, facts: EngineFacts) -> dict[str, Any]:
    return {
        # What isolates it. Without the field it is the engine's default.
        **_runtime(plan, facts),
        # What it may do.
        "Privileged": False,
        "CapDrop": ["ALL"],
        "CapAdd": list(GUEST_CAPABILITIES),
        # Without an entry for seccomp the engine applies its own filter.
        "SecurityOpt": ["no-new-privileges:true"],
        "GroupAdd": [],
        "Sysctls": {},
        "Devices": [],
        "DeviceRequests": [],
        "DeviceCgroupRules": [],
        # What it sees of the host: our own read-only mounts, and what was granted.
        "ReadonlyRootfs": True,
        "Tmpfs": _tmpfs(plan),
        "Mounts": _mounts(plan),
        "Binds": [],
        "VolumesFrom": [],
        "MaskedPaths": list(MASKED_PATHS),
        "ReadonlyPaths": list(READONLY_PATHS),
        "IpcMode": "none",
        "PidMode": "",
        "UTSMode": "",
        "UsernsMode": "",
        "CgroupnsMode": "private",
        # Whom it can talk to: nobody, or whom the packet filter of its network lets it (see guard.py).
        **network_fields(plan),
        "PublishAllPorts": False,
        "Links": [],
        # How much it gets.
        "CgroupParent": CGROUP_PARENTS[facts.cgroup_driver],
        **resource_limits(plan.spec, facts),
        # Control groups of version 2 have no such knob, and some engines refuse it there.
        **({"MemorySwappiness": 0} if facts.cgroup_version == 1 else {}),
        "OomKillDisable": False,
        "OomScoreAdj": 500,
        "Ulimits": _ulimits(plan),
        # How it lives: we start it, watch it, and remove it; its output never lands on the host's disk.
        "Init": False,
        "LogConfig": {"Type": "none", "Config": {}},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,
    }


def _runtime(plan: ContainerPlan, facts: EngineFacts) -> dict[str, str]:
    name = plan.engine_runtime
    if not name:
        return {}
    if name not in facts.runtimes:
        known = ", ".join(sorted(facts.runtimes)) or "none by name"
        hint = f"it has {known}; add it under runtimes in the engine's daemon.json"
        raise EngineRefused("isolate a sandbox", f"it has no runtime {name!r}, which its runtime class needs: {hint}")
    return {"Runtime": name}


def _entrypoint(plan: ContainerPlan) -> list[str]:
    if plan.guest_arguments:
        return attached_guest_argv(_python(plan), plan.guest_arguments, plan.settings, "--container")
    return guest_argv(_python(plan), GUEST_FILE, SOCKET_PATH, plan.settings, "--container")


def _python(plan: ContainerPlan) -> str:
    """What runs the guest: the image's own Python, found by the image's PATH, or the one that comes along."""
    return "python3" if plan.interpreter_dir is None else f"{INTERPRETER_DIR}/bin/python3"


def _guest_env(plan: ContainerPlan) -> list[str]:
    """Ours, and each other variable of the image as a bare name, which makes Docker leave it out.

    Programs get the image's environment from the guest. Here ``LD_PRELOAD`` would act before Python's own flags do.
    The image's PATH is kept, because it says where its ``python3`` is.
    """
    ours = {"PATH": plan.image.env.get("PATH") or DEFAULT_PATH, "LANG": "C.UTF-8"}
    unwanted = sorted(name for name in plan.image.env if name and name not in ours)
    return [f"{name}={value}" for name, value in ours.items()] + unwanted


def _tmpfs(plan: ContainerPlan) -> dict[str, str]:
    """Every place that can be written to: bounded in bytes and in files, and charged to the memory limit."""
    spec = plan.spec
    uid = _at_least("settings.uid", plan.settings.uid, 1)
    own = f"uid={uid},gid={_at_least('settings.gid', plan.settings.group, 1)},mode=0700"
    working_dir = clean_path(spec.working_dir)
    if working_dir is None or working_dir != spec.working_dir or is_system_path(working_dir):
        raise InvalidRequest.of(
            "spec.working_dir", "must be an absolute, normalised path outside the system's directories, as /sandbox"
        )
    mounts = {
        volume: _tmpfs_options("exec", VOLUME_SIZE_BYTES, own)
        for volume in left_volumes(plan, usable_volumes(plan.image.name, plan.image.volumes))
    }
    # These last: they win where the image declares a volume at the same path.
    mounts["/dev/shm"] = _tmpfs_options(  # noqa: S108 - a mount point in the container
        "noexec", _at_least("spec.shm_size_bytes", spec.shm_size_bytes, 1), "mode=1777", INODES_MIN
    )
    mounts["/tmp"] = _tmpfs_options(  # noqa: S108 - a mount point in the container
        "exec", _at_least("spec.tmp_size_bytes", spec.tmp_size_bytes, 1), "mode=1777"
    )
    mounts[working_dir] = _tmpfs_options(
        "exec", _at_least("spec.working_dir_size_bytes", spec.working_dir_size_bytes, 1), own
    )
    return mounts


def _tmpfs_options(execution: str, size_bytes: int, owner: str, inodes: int | None = None) -> str:
    # "exec" must be spelled out: Docker adds noexec otherwise, and compiled programs could not run.
    inodes = inodes or max(INODES_MIN, size_bytes // BYTES_PER_INODE)
    return f"rw,{execution},nosuid,nodev,size={size_bytes},nr_inodes={inodes},{owner}"


def _mounts(plan: ContainerPlan) -> list[dict[str, Any]]:
    """Our own mounts, all read-only, and those that were granted; none where the engine does not see our files.

    In the long form, because a source that does not exist is then an error; the short form would create it on the
    host, and would trip over colons in paths.
    """
    if plan.guest_arguments:
        if plan.spec.mounts:
            text = "need an engine that sees this machine's files; leave them out, and write files into the sandbox"
            raise InvalidRequest.of("spec.volumes", text)
        if not plan.mounts_accounts:
            return []
    sources = {f"/etc/{name}": plan.account_dir / name for name in ("group", "hosts", "passwd")}
    if not plan.guest_arguments:
        sources |= {GUEST_FILE: plan.guest_file, SOCKET_DIR: plan.socket_dir}
    if plan.interpreter_dir is not None:
        sources[INTERPRETER_DIR] = plan.interpreter_dir
    if plan.spec.network is not Network.NONE:
        sources["/etc/resolv.conf"] = plan.account_dir / "resolv.conf"
    ours = [
        {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": True}
        for target, source in sources.items()
    ]
    return [*ours, *host_mounts(plan)]


def _ulimits(plan: ContainerPlan) -> list[dict[str, Any]]:
    # No nproc: the kernel counts it per uid across containers. PidsLimit does the job.
    spec: SandboxSpec = plan.spec
    limits = {
        "core": 0,
        "fsize": max(spec.working_dir_size_bytes, spec.tmp_size_bytes),
        "nofile": _at_least("settings.open_files_limit", plan.settings.open_files_limit, 1),
    }
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in limits.items()]


def _nano_cpus(cpu_limit: float, cpus: int) -> int:
    if not math.isfinite(cpu_limit) or cpu_limit < 0.01:
        raise InvalidRequest.of("spec.cpu_limit", "must be a number of CPUs, 0.01 or more")
    return int(min(cpu_limit, cpus) * 1_000_000_000)


def _at_least(field: str, value: int, minimum: int) -> int:
    if value < minimum:
        raise InvalidRequest.of(field, f"must be {minimum} or more, not {value}")
    return value
