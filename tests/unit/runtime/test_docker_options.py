"""The hardened profile, field by field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from enclaved.errors import ImageUnusable, InvalidRequest
from enclaved.runtime.docker.facts import EngineFacts
from enclaved.runtime.docker.options import container_name, create_body, usable_volumes

MIB = 1024 * 1024


@pytest.fixture
def body(plan, facts):
    return create_body(plan, facts)


def test_the_guest_is_the_entry_point_whatever_the_image_says(body):
    assert body["Entrypoint"][:7] == [
        "python3",
        "-I",
        "-S",
        "-E",
        "/run/enclave/guest.py",
        "--container",
        "/run/enclave/socket/agent.sock",
    ]
    assert json.loads(body["Entrypoint"][7])["uid"] == 1900000007
    assert body["Cmd"] == []
    assert body["WorkingDir"] == "/"
    assert body["User"] == "0:998"
    assert body["StopSignal"] == "SIGTERM"
    assert body["Healthcheck"] == {"Test": ["NONE"]}
    assert body["Image"] == "sha256:" + "a" * 64


def test_image_variables_are_taken_out_of_the_guests_environment_except_the_path(body):
    assert body["Env"] == ["PATH=/opt/bin:/usr/bin", "LANG=C.UTF-8", "FOO", "LD_PRELOAD"]


def test_the_programs_environment_is_not_in_the_container(body):
    assert "s3cret" not in json.dumps(body)


def test_an_image_without_a_path_gets_the_usual_one(with_image, facts):
    env = create_body(with_image(env={"LANG": "de_DE"}), facts)["Env"]
    assert env == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]


def test_the_guest_has_three_capabilities_and_can_gain_none(body):
    host = body["HostConfig"]
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], ["SETUID", "SETGID", "KILL"])
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Privileged"] is False


def test_there_is_no_network(body):
    assert body["NetworkDisabled"] is True
    assert body["HostConfig"]["NetworkMode"] == "none"


def test_every_writable_place_is_bounded_in_bytes_and_files(body):
    assert body["HostConfig"]["ReadonlyRootfs"] is True
    assert body["HostConfig"]["Tmpfs"] == {
        "/dev/shm": f"rw,noexec,nosuid,nodev,size={16 * MIB},nr_inodes=1024,mode=1777",
        "/tmp": f"rw,exec,nosuid,nodev,size={64 * MIB},nr_inodes=8192,mode=1777",
        "/sandbox": f"rw,exec,nosuid,nodev,size={128 * MIB},nr_inodes=16384,uid=1900000007,gid=1900000007,mode=0700",
    }
    assert body["HostConfig"]["IpcMode"] == "none"


def test_only_our_own_files_are_mounted_and_only_for_reading(body):
    host = body["HostConfig"]
    assert {m["Target"]: m["Source"] for m in host["Mounts"]} == {
        "/etc/group": "/srv/enclaved/accounts/1900000007/group",
        "/etc/hosts": "/srv/enclaved/accounts/1900000007/hosts",
        "/etc/passwd": "/srv/enclaved/accounts/1900000007/passwd",
        "/run/enclave/guest.py": "/srv/enclaved/guest.py",
        "/run/enclave/socket": "/run/enclaved/sandboxes/box-1",
    }
    assert all(m["Type"] == "bind" and m["ReadOnly"] is True for m in host["Mounts"])
    assert host["Binds"] == []
    assert host["VolumesFrom"] == []


def test_limits_are_what_the_spec_says_and_swap_is_none(body):
    host = body["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 512 * MIB
    assert host["MemorySwappiness"] == 0
    assert host["OomKillDisable"] is False
    assert host["OomScoreAdj"] == 500
    assert host["NanoCpus"] == 500_000_000
    assert host["PidsLimit"] == 256
    assert {u["Name"]: (u["Soft"], u["Hard"]) for u in host["Ulimits"]} == {
        "core": (0, 0),
        "fsize": (128 * MIB, 128 * MIB),
        "nofile": (1024, 1024),
    }


def test_the_engines_own_masks_are_kept_and_ours_added(body):
    host = body["HostConfig"]
    assert {"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"} <= set(host["MaskedPaths"])
    assert {"/proc/cmdline", "/proc/interrupts", "/sys/fs", "/sys/kernel"} <= set(host["MaskedPaths"])
    assert host["ReadonlyPaths"] == ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def test_output_is_not_logged_and_the_engine_neither_restarts_nor_removes(body):
    host = body["HostConfig"]
    assert host["LogConfig"]["Type"] == "none"
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["AutoRemove"] is False
    assert host["Init"] is False


@pytest.mark.parametrize(("driver", "parent"), [("cgroupfs", "/enclaved"), ("systemd", "enclaved.slice")])
def test_all_sandboxes_share_one_parent_control_group(plan, driver, parent):
    body = create_body(plan, EngineFacts(driver, 2, 2))
    assert body["HostConfig"]["CgroupParent"] == parent


def test_swappiness_is_not_sent_to_control_groups_that_do_not_know_it(plan):
    assert "MemorySwappiness" not in create_body(plan, EngineFacts("systemd", 2, 2))["HostConfig"]


def test_more_cpus_than_the_machine_has_mean_all_of_them(with_spec, facts):
    assert create_body(with_spec(cpu_limit=64.0), facts)["HostConfig"]["NanoCpus"] == 2_000_000_000


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"memory_limit_bytes": 0}, "spec.memory_limit_bytes"),
        ({"memory_limit_bytes": -1}, "spec.memory_limit_bytes"),
        ({"pids_limit": 0}, "spec.pids_limit"),
        ({"pids_limit": -1}, "spec.pids_limit"),
        ({"cpu_limit": 0.0}, "spec.cpu_limit"),
        ({"cpu_limit": float("nan")}, "spec.cpu_limit"),
        ({"cpu_limit": float("inf")}, "spec.cpu_limit"),
        ({"tmp_size_bytes": 0}, "spec.tmp_size_bytes"),
        ({"shm_size_bytes": 0}, "spec.shm_size_bytes"),
        ({"working_dir_size_bytes": -1}, "spec.working_dir_size_bytes"),
        ({"working_dir": "/"}, "spec.working_dir"),
        ({"working_dir": "sandbox"}, "spec.working_dir"),
        ({"working_dir": "/proc/self"}, "spec.working_dir"),
        ({"working_dir": "/usr"}, "spec.working_dir"),
        ({"working_dir": "/run"}, "spec.working_dir"),
        ({"working_dir": "/run/enclave/socket"}, "spec.working_dir"),
        ({"working_dir": "/box/../etc"}, "spec.working_dir"),
        ({"working_dir": "/work\n"}, "spec.working_dir"),
    ],
)
def test_numbers_that_mean_unlimited_and_paths_that_hide_the_system_are_refused(with_spec, facts, fields, named):
    with pytest.raises(InvalidRequest) as caught:
        create_body(with_spec(**fields), facts)
    assert [v.field for v in caught.value.violations] == [named]


def test_programs_never_run_as_root(plan, facts):
    with pytest.raises(InvalidRequest, match=r"settings\.uid"):
        create_body(replace(plan, settings=replace(plan.settings, uid=0)), facts)


def test_each_volume_of_an_image_becomes_a_small_tmpfs(with_image, facts):
    tmpfs = create_body(with_image(volumes=("/data/", "//sandbox/inner")), facts)["HostConfig"]["Tmpfs"]
    bounded = f"rw,exec,nosuid,nodev,size={16 * MIB},nr_inodes=2048,uid=1900000007,gid=1900000007,mode=0700"
    # One below the working directory as well: the engine would mount the host's disk there.
    assert tmpfs["/data"] == tmpfs["/sandbox/inner"] == bounded


def test_a_volume_at_a_place_of_ours_changes_nothing(plan, with_image, facts):
    body = create_body(with_image(volumes=("/tmp", "/sandbox")), facts)
    assert body["HostConfig"]["Tmpfs"] == create_body(plan, facts)["HostConfig"]["Tmpfs"]


@pytest.mark.parametrize(
    "volume",
    ["/", "/etc", "/usr", "/usr/local", "/lib", "/proc/sys", "/sys", "/dev/shm", "/run", "/run/enclave/socket", "data"],
)
def test_an_image_whose_volume_no_tmpfs_can_replace_is_unusable(volume):
    with pytest.raises(ImageUnusable, match="VOLUME"):
        usable_volumes("odd:1", (volume,))


def test_an_image_with_very_many_volumes_is_unusable():
    with pytest.raises(ImageUnusable, match="17 volumes"):
        usable_volumes("odd:1", tuple(f"/data/{n}" for n in range(17)))


def test_the_containers_name_is_the_same_for_every_attempt_and_differs_between_owners(plan):
    name = container_name(plan)
    assert name == container_name(plan)
    assert name.startswith("enclaved-box-1-")
    assert name != container_name(replace(plan, labels={}))


@pytest.mark.parametrize("sandbox_id", ["", "../x", "a/b", "-x", "a b", "a\n", "x" * 129])
def test_a_sandbox_id_that_is_no_name_is_refused(plan, sandbox_id):
    with pytest.raises(InvalidRequest, match="sandbox_id"):
        container_name(replace(plan, settings=replace(plan.settings, sandbox_id=sandbox_id)))


def test_an_interpreter_of_the_guests_own_is_mounted_read_only_and_runs_it(plan, facts):
    body = create_body(replace(plan, interpreter_dir=Path("/srv/guest-runtime-1")), facts)
    assert body["Entrypoint"][0] == "/run/enclave/rt/bin/python3"
    mount = {"Type": "bind", "Source": "/srv/guest-runtime-1", "Target": "/run/enclave/rt", "ReadOnly": True}
    assert mount in body["HostConfig"]["Mounts"]


def test_a_guest_that_is_attached_to_has_its_input_open_and_nothing_mounted(plan, facts):
    body = create_body(replace(plan, guest_arguments=("first", "second")), facts)
    assert (body["OpenStdin"], body["StdinOnce"], body["Tty"]) == (True, False, False)
    assert body["HostConfig"]["Mounts"] == []
    command = body["Entrypoint"]
    assert command[:5] == ["python3", "-I", "-S", "-E", "-c"]
    assert command[6:11] == ["2", "first", "second", "--container", "-"]
    assert "/run/enclave/socket" not in str(command[:5] + command[6:])
