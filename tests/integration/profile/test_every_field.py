"""A sandbox as it is handed out, looked at as the usual checklists for containers do: each field, and from inside."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiodocker
import pytest
from ms_enclave.v1 import execution_service_pb2 as execution_pb

from tests.service.daemons import Running, daemon, python, settings_in, short_directory

MIB = 1024 * 1024
MEMORY, WORK, TMP, SHM = 512 * MIB, 128 * MIB, 64 * MIB, 16 * MIB
THREE_CAPABILITIES = f"{(1 << 5) | (1 << 6) | (1 << 7):016x}"
NONE = "0" * 16

# The engine's own lists and ours; each entry stands in the specification of the profile.
MASKED = {
    *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug"),
    *("/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware"),
    *("/proc/cmdline", "/proc/interrupts", "/sys/block", "/sys/bus", "/sys/class", "/sys/dev", "/sys/fs"),
    *("/sys/kernel", "/sys/module", "/sys/power", "/sys/devices/virtual/dmi", "/sys/devices/virtual/powercap"),
}
READ_ONLY = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

HOST_CONFIG: dict[str, Any] = {
    # What it may do.
    "Privileged": False,
    "CapDrop": {"ALL"},
    "CapAdd": {"SETUID", "SETGID", "KILL"},
    "SecurityOpt": {"no-new-privileges:true"},
    "GroupAdd": None,
    "Sysctls": None,
    "Devices": None,
    "DeviceRequests": None,
    "DeviceCgroupRules": None,
    # What it sees.
    "ReadonlyRootfs": True,
    "Binds": None,
    "VolumesFrom": None,
    "VolumeDriver": None,
    "MaskedPaths": MASKED,
    "ReadonlyPaths": READ_ONLY,
    "IpcMode": "none",
    "PidMode": None,
    "UTSMode": None,
    "UsernsMode": None,
    "CgroupnsMode": "private",
    "Isolation": None,
    # Whom it can talk to.
    "NetworkMode": "none",
    "PortBindings": None,
    "PublishAllPorts": False,
    "ExtraHosts": None,
    "Links": None,
    "Dns": None,
    "DnsOptions": None,
    "DnsSearch": None,
    # How much it gets.
    "Memory": MEMORY,
    "MemorySwap": MEMORY,
    "MemorySwappiness": 0,
    "MemoryReservation": 0,
    "KernelMemory": 0,
    "KernelMemoryTCP": 0,
    "OomKillDisable": False,
    "OomScoreAdj": 500,
    "NanoCpus": 1_000_000_000,
    "CpuShares": 0,
    "CpuPeriod": 0,
    "CpuQuota": 0,
    "CpuRealtimePeriod": 0,
    "CpuRealtimeRuntime": 0,
    "CpusetCpus": None,
    "CpusetMems": None,
    "CpuCount": 0,
    "CpuPercent": 0,
    "PidsLimit": 256,
    "BlkioWeight": 0,
    "BlkioWeightDevice": None,
    "BlkioDeviceReadBps": None,
    "BlkioDeviceWriteBps": None,
    "BlkioDeviceReadIOps": None,
    "BlkioDeviceWriteIOps": None,
    "IOMaximumIOps": 0,
    "IOMaximumBandwidth": 0,
    "ShmSize": 64 * MIB,  # of a mount that "none" does not make
    # How it lives.
    "Init": False,
    "AutoRemove": False,
    "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
    "LogConfig": {"Type": "none", "Config": {}},
    "Runtime": "runc",
    "ContainerIDFile": None,
    "ConsoleSize": None,
    "Cgroup": None,
    "StorageOpt": None,
}
LOOKED_AT_BELOW = {"CgroupParent", "Mounts", "Tmpfs", "Ulimits"}


@pytest.fixture
async def running(default_image: str) -> AsyncIterator[Running]:
    """A daemon with one sandbox, ``box``, of which nothing but its id was asked for."""
    async with short_directory() as folder, daemon(settings_in(folder), runtime=None) as made:
        await made.create("box")
        yield made


@pytest.fixture
async def inspected(running: Running) -> dict[str, Any]:
    """What the engine says of the sandbox."""
    async with aiodocker.Docker() as docker:
        for container in await docker.containers.list(filters={"label": ["enclaved.id=box"]}):
            found: dict[str, Any] = await container.show()
            if any(running.settings.state.dir in mount["Source"] for mount in found["Mounts"]):
                return found
    raise AssertionError("no container")


def plain(value: Any) -> Any:
    """A value without the differences that say nothing."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return {item.removeprefix("CAP_") for item in value}
    return None if value in ([], {}, "", [0, 0]) else value


def test_every_field_of_the_container_is_as_the_profile_says(inspected):
    host = inspected["HostConfig"]
    assert {name: plain(value) for name, value in host.items() if name not in LOOKED_AT_BELOW} == {
        name: value for name, value in HOST_CONFIG.items() if name in host
    }
    assert set(HOST_CONFIG) - set(host) <= {"Init", "Sysctls", "StorageOpt"}
    assert host["CgroupParent"] in ("/enclaved", "enclaved.slice")
    limits = {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in host["Ulimits"]}
    assert limits == {"core": (0, 0), "fsize": (WORK, WORK), "nofile": (1024, 1024)}
    assert set(host["Tmpfs"]) == {"/sandbox", "/tmp", "/dev/shm"}
    for path, size in (("/sandbox", WORK), ("/tmp", TMP), ("/dev/shm", SHM)):
        options = host["Tmpfs"][path].split(",")
        assert {"rw", "nosuid", "nodev", f"size={size}"} <= set(options)
        assert any(option.startswith("nr_inodes=") for option in options)
    assert [mount["ReadOnly"] for mount in host["Mounts"]] == [True] * 5


def test_every_mount_is_the_daemons_own_and_read_only(inspected, running):
    assert {(mount["Destination"], mount["RW"]) for mount in inspected["Mounts"]} == {
        (path, False)
        for path in (
            *("/etc/group", "/etc/hosts", "/etc/passwd"),
            *("/run/enclave/guest.py", "/run/enclave/socket"),
        )
    }
    assert all(mount["Source"].startswith(running.settings.state.dir) for mount in inspected["Mounts"])
    assert set(inspected["NetworkSettings"]["Networks"]) <= {"none"}


def test_what_the_image_says_of_its_start_is_not_taken(inspected):
    config = inspected["Config"]
    assert config["User"].startswith("0:")
    assert config["Healthcheck"] == {"Test": ["NONE"]}
    assert config["Entrypoint"][:5] == ["python3", "-I", "-S", "-E", "/run/enclave/guest.py"]
    assert plain(config["Cmd"]) is None
    assert config["NetworkDisabled"] is True
    assert config["Tty"] is False
    assert {item.partition("=")[0] for item in config["Env"]} == {"PATH", "LANG"}
    assert {"enclaved.id", "enclaved.owner", "enclaved.uid", "enclaved.hmac"} <= set(config["Labels"])


LOOK = """
import json
def status(pid):
    lines = open(f"/proc/{pid}/status").read().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
print(json.dumps([status("self"), status(1), open("/proc/self/oom_score_adj").read()]))
"""


async def test_a_program_has_nothing_and_the_guest_three_capabilities(running):
    request = execution_pb.RunRequest(spec=python(LOOK))
    answer = await running.execution_stub.Run(request)
    program, guest, score = json.loads(answer.stdout)
    uid = program["Uid"][0]
    assert int(uid) >= running.settings.sandbox.uid_first
    assert program["Uid"] == program["Gid"] == [uid] * 4
    assert program["Groups"] == []
    assert [program[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [[NONE]] * 4
    assert [guest[name] for name in ("CapPrm", "CapEff", "CapBnd")] == [[THREE_CAPABILITIES]] * 3
    assert [guest[name] for name in ("CapInh", "CapAmb")] == [[NONE]] * 2
    assert guest["Uid"] == ["0"] * 4
    for process in (program, guest):
        assert process["NoNewPrivs"] == ["1"]
        assert process["Seccomp"] == ["2"]
    assert int(program["Seccomp_filters"][0]) == int(guest["Seccomp_filters"][0]) + 1
    assert score == "1000\n"
