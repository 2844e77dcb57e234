"""Each precondition of isolation, taken away in turn: the daemon does not serve, and says which one is missing.

The engine in between accepts every option and describes containers as they were asked for, but does not do it; so it
is the look from inside that counts. About two seconds each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from enclaved.daemon import Unprotected
from tests.integration.sabotage.lying import Lies, lying_engine
from tests.service.daemons import daemon, settings_in, short_directory

Change = Callable[[dict[str, Any]], None]


def host(**values: Any) -> Change:
    """Replaces fields of HostConfig."""
    return lambda body: body["HostConfig"].update(values)


def without(name: str) -> Change:
    """Drops a field of HostConfig."""
    return lambda body: body["HostConfig"].pop(name)


def tmpfs(path: str, old: str, new: str) -> Change:
    """Changes the options of one tmpfs."""

    def change(body: dict[str, Any]) -> None:
        options = body["HostConfig"]["Tmpfs"][path].split(",")
        kept = [option for option in options if option.partition("=")[0] != old]
        body["HostConfig"]["Tmpfs"][path] = ",".join([*kept, *([new] if new else [])])

    return change


def networked(body: dict[str, Any]) -> None:
    """Gives a container an interface, which leads nowhere."""
    body["NetworkDisabled"] = False
    body["HostConfig"]["NetworkMode"] = "bridge"


def mount_of_host(body: dict[str, Any]) -> None:
    """Mounts something of the host that nobody asked for."""
    mount = {"Type": "bind", "Source": "/usr/share/zoneinfo", "Target": "/mnt", "ReadOnly": True}
    body["HostConfig"]["Mounts"].append(mount)


def volume(body: dict[str, Any]) -> None:
    """Adds a place without limits that can be written to."""
    body["HostConfig"]["Tmpfs"]["/mnt"] = "rw,mode=1777"


def hosts_names(body: dict[str, Any]) -> None:
    """Shares the host's name."""
    body.pop("Hostname")
    body["HostConfig"]["UTSMode"] = "host"


def says(**values: Any) -> Change:
    """Changes what the engine says of itself."""
    return lambda info: info.update(values)


CASES = {
    "the engine has no filter of system calls": (Lies(info=says(SecurityOptions=[])), "engine_filter"),
    "the engine's filter lets everything through": (
        Lies(info=says(SecurityOptions=["name=seccomp,profile=unconfined"])),
        "engine_filter",
    ),
    "the engine has no memory limits": (Lies(info=says(MemoryLimit=False)), "memory_limit"),
    "the engine has no limits of processes": (Lies(info=says(PidsLimit=False)), "pids_limit"),
    "the engine has no limits of CPU time": (Lies(info=says(CpuCfsQuota=False)), "cpu_limit"),
    "the engine's default runtime is another": (Lies(info=says(DefaultRuntime="something")), "runtime"),
    "the engine says that it has AppArmor and puts no profile on": (
        Lies(info=lambda info: info["SecurityOptions"].append("name=apparmor")),
        "apparmor",
    ),
    "the engine says that it has user namespaces and root is root": (
        Lies(info=lambda info: info["SecurityOptions"].append("name=userns")),
        "user_namespace",
    ),
    "the engine drops its filter": (
        Lies(create=host(SecurityOpt=["no-new-privileges:true", "seccomp=unconfined"])),
        "engine_filter",
    ),
    "no-new-privileges is dropped": (Lies(create=host(SecurityOpt=[])), "no_new_privileges"),
    "a capability too many is added": (
        Lies(create=host(CapAdd=["SETUID", "SETGID", "KILL", "CHOWN"])),
        "guest",
    ),
    "the memory limit is dropped": (Lies(create=host(Memory=0, MemorySwap=0)), "memory_limit"),
    "the memory limit is another": (Lies(create=host(Memory=1 << 30, MemorySwap=1 << 30)), "memory_limit"),
    "the limit of processes is dropped": (Lies(create=without("PidsLimit")), "pids_limit"),
    "the limit of CPU time is dropped": (Lies(create=without("NanoCpus")), "cpu_limit"),
    "the limits of processes are dropped": (Lies(create=host(Ulimits=[])), "process_limits"),
    "the root can be written to": (Lies(create=host(ReadonlyRootfs=False)), "read_only_root"),
    "the working directory has no size": (Lies(create=tmpfs("/sandbox", "size", "")), "bounded_files"),
    "the number of files in /tmp is not limited": (Lies(create=tmpfs("/tmp", "nr_inodes", "")), "bounded_files"),
    "setuid works in the working directory": (Lies(create=tmpfs("/sandbox", "nosuid", "suid")), "bounded_files"),
    "there is a place without limits": (Lies(create=volume), "bounded_files"),
    "something of the host is mounted": (Lies(create=mount_of_host), "host_files"),
    "there is a network": (Lies(create=networked), "no_network"),
    "the names are the host's": (Lies(create=hosts_names), "namespaces"),
    "shared memory is the host's": (Lies(create=host(IpcMode="host")), "namespaces"),
    "the control groups are the host's": (Lies(create=host(CgroupnsMode="host")), "namespaces"),
    "nothing of the kernel is masked": (Lies(create=host(MaskedPaths=[], ReadonlyPaths=[])), "kernel_view"),
    "/proc/sys can be written to": (Lies(create=host(ReadonlyPaths=[])), "kernel_view"),
    "a device is added": (
        Lies(
            create=host(
                Devices=[{"PathOnHost": "/dev/full", "PathInContainer": "/dev/spare", "CgroupPermissions": "rw"}]
            )
        ),
        "devices",
    ),
    "a lack of memory ends any program": (Lies(create=host(OomScoreAdj=0)), "oom_preference"),
    "the engine does what was asked for and says something else": (
        Lies(inspect=host(Privileged=True), honest=True),
        "profile",
    ),
    "an option is changed and shown": (Lies(create=host(RestartPolicy={"Name": "always"}), honest=True), "profile"),
}


@pytest.mark.parametrize(("lies", "name"), CASES.values(), ids=CASES.keys())
async def test_the_daemon_does_not_serve_where(lies: Lies, name: str, default_image: str) -> None:
    async with short_directory() as folder, lying_engine(folder, lies) as url:
        with pytest.raises(Unprotected) as refusal:
            async with daemon(settings_in(folder, engine__url=url), runtime=None):
                pass
    text = str(refusal.value)
    assert text.startswith("sandboxes would not be isolated here: ")
    assert f'"{name}"' in text.partition("protections = [")[2]


async def test_the_daemon_does_not_serve_where_the_processes_are_the_hosts(default_image: str) -> None:
    """The guest does not go on there, so that there is no canary at all."""
    lies = Lies(create=host(PidMode="host"))
    async with short_directory() as folder, lying_engine(folder, lies) as url:
        with pytest.raises(Unprotected, match=r"no sandbox can be made here.* needs to be PID 1"):
            async with daemon(settings_in(folder, engine__url=url), runtime=None):
                pass
