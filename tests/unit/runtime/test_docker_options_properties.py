"""Whatever the plan says, the create body stays within the profile, or there is none."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from enclaved.errors import ImageUnusable, InvalidRequest
from enclaved.model import SandboxSpec
from enclaved.runtime.base import ContainerPlan, GuestSettings, Image
from enclaved.runtime.docker.facts import EngineFacts
from enclaved.runtime.docker.options import create_body

TARGETS = {"/etc/group", "/etc/hosts", "/etc/passwd", "/run/enclave/guest.py", "/run/enclave/socket"}
FORBIDDEN_TREES = ("/proc", "/sys", "/dev", "/run/enclave")
TMPFS = re.compile(
    r"rw,(exec|noexec),nosuid,nodev,size=[1-9]\d*,nr_inodes=[1-9]\d*,(mode=1777|uid=[1-9]\d*,gid=[1-9]\d*,mode=0700)"
)

names = st.one_of(st.sampled_from(["PATH", "LANG", "LD_PRELOAD", "PYTHONPATH"]), st.text(max_size=10))
texts = st.text(max_size=30)
good_numbers = st.integers(1, 2**34)
good_paths = st.sampled_from(["/sandbox", "/data", "/tmp", "/tmp/x", "/var/lib/x", "/a,size=9g", "/ä b:c"])
wild_numbers = st.one_of(st.sampled_from([-1, 0, 1]), st.integers())
wild_paths = st.one_of(
    st.sampled_from(["/", "/etc", "/proc", "/dev/shm", "//x/../y", "/run", "/usr"]),
    st.lists(st.sampled_from(["a", "..", ".", "", "etc", "run", "enclave", "proc"]), max_size=5).map(
        lambda parts: "/" + "/".join(parts)
    ),
    st.text(max_size=20),
)


def plans(numbers, paths, cpus):
    """Plans with these numbers and paths, and anything in all other fields."""
    return st.builds(
        ContainerPlan,
        image=st.builds(
            Image,
            id=texts,
            name=texts,
            env=st.dictionaries(names, texts, max_size=4),
            volumes=st.lists(paths, max_size=4).map(tuple),
        ),
        spec=st.builds(
            SandboxSpec,
            image=texts,
            memory_limit_bytes=numbers,
            cpu_limit=cpus,
            pids_limit=numbers,
            working_dir_size_bytes=numbers,
            tmp_size_bytes=numbers,
            shm_size_bytes=numbers,
            working_dir=paths,
            env_vars=st.dictionaries(names, texts, max_size=3),
            tools=st.none(),
            timeout_s=st.floats(),
            timeout_max_s=st.floats(),
            ttl_s=st.floats(),
            remove_on_exit=st.booleans(),
        ),
        settings=st.builds(
            GuestSettings,
            sandbox_id=texts,
            uid=numbers,
            working_dir=paths,
            expires_in_s=st.floats(),
            daemon_absence_s=st.floats(),
            memory_limit_bytes=numbers,
            open_files_limit=numbers,
            file_size_limit_bytes=numbers,
        ),
        guest_file=texts.map(Path),
        socket_dir=texts.map(Path),
        account_dir=texts.map(Path),
        group_id=numbers,
        labels=st.dictionaries(texts, texts, max_size=3),
    )


engines = st.builds(
    EngineFacts,
    cgroup_driver=st.sampled_from(["cgroupfs", "systemd"]),
    cgroup_version=st.sampled_from([1, 2]),
    cpus=st.integers(1, 512),
)


@given(plan=plans(good_numbers, good_paths, st.floats(0.01, 1000)), facts=engines)
@settings(max_examples=150, deadline=None)
def test_every_sound_plan_gets_the_profile_and_nothing_else(plan: ContainerPlan, facts: EngineFacts):
    assert_profile(create_body(plan, facts), plan, facts)


@given(plan=plans(st.one_of(good_numbers, wild_numbers), st.one_of(good_paths, wild_paths), st.floats()), facts=engines)
@settings(max_examples=300, deadline=None)
def test_every_other_plan_gets_the_profile_or_is_refused(plan: ContainerPlan, facts: EngineFacts):
    try:
        body = create_body(plan, facts)
    except (InvalidRequest, ImageUnusable):
        return
    assert_profile(body, plan, facts)


def assert_profile(body: dict[str, Any], plan: ContainerPlan, facts: EngineFacts) -> None:
    host = body["HostConfig"]

    # The keys are a closed list: a new one has to be argued for here.
    assert set(body) == {
        *("Image", "User", "Entrypoint", "Cmd", "Env", "WorkingDir", "Labels", "Healthcheck", "StopSignal"),
        "ExposedPorts",
        *(
            "Hostname",
            "NetworkDisabled",
            "Tty",
            "OpenStdin",
            "StdinOnce",
            "AttachStdin",
            "AttachStdout",
            "AttachStderr",
            "HostConfig",
        ),
    }
    assert (body["OpenStdin"], body["StdinOnce"], body["Tty"]) == (False, False, False)
    assert re.fullmatch(r"0:\d+", body["User"])
    assert body["Entrypoint"][0] == "python3"
    assert body["Entrypoint"][4] == "/run/enclave/guest.py"
    assert body["Cmd"] == []
    assert [entry.partition("=")[0] for entry in body["Env"] if "=" in entry][:2] == ["PATH", "LANG"]

    assert host["Privileged"] is False
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], ["SETUID", "SETGID", "KILL"])
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert body["NetworkDisabled"] is True
    assert (host["NetworkMode"], host["IpcMode"], host["CgroupnsMode"]) == ("none", "none", "private")
    assert (host["PidMode"], host["UTSMode"], host["UsernsMode"]) == ("", "", "")
    for empty in (
        *("Binds", "VolumesFrom", "Devices", "DeviceRequests", "DeviceCgroupRules", "Sysctls", "GroupAdd"),
        *("PortBindings", "ExtraHosts", "Links"),
    ):
        assert not host[empty], empty
    assert host["PublishAllPorts"] is False
    assert "Runtime" not in host

    assert {m["Target"] for m in host["Mounts"]} == TARGETS
    assert all(m["ReadOnly"] is True and m["Type"] == "bind" for m in host["Mounts"])
    assert host["ReadonlyRootfs"] is True
    for target, options in host["Tmpfs"].items():
        assert target == posixpath.normpath(target)
        assert target == "/dev/shm" or not any(f"{target}/".startswith(f"{tree}/") for tree in FORBIDDEN_TREES)
        assert TMPFS.fullmatch(options), options
    assert {"/tmp", "/dev/shm", plan.spec.working_dir} <= set(host["Tmpfs"])
    assert {posixpath.normpath("/" + v.lstrip("/")) for v in plan.image.volumes} <= set(host["Tmpfs"])

    assert host["Memory"] == host["MemorySwap"] > 0
    assert host["PidsLimit"] > 0
    assert 0 < host["NanoCpus"] <= facts.cpus * 1_000_000_000
    assert host["OomKillDisable"] is False
    assert all(u["Soft"] == u["Hard"] >= 0 for u in host["Ulimits"])
    assert host["CgroupParent"] in ("/enclaved", "enclaved.slice")
    assert host["LogConfig"]["Type"] == "none"
