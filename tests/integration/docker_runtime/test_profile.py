"""The hardened profile as a real engine applies it, looked at from inside: accepted is not enforced."""

from __future__ import annotations

import asyncio
import errno
import json
import os

import pytest

from enclaved.runtime.docker.facts import facts_of
from enclaved.runtime.docker.options import create_body

from .conftest import AS_PROGRAM, GROUP, MIB, UID

pytestmark = pytest.mark.docker


async def test_the_engine_keeps_every_field_of_the_profile(workshop):
    plan = workshop.plan()
    wanted = create_body(plan, facts_of(await workshop.engine.system.info()))
    container_id = await workshop.runtime.create(plan)
    seen = await workshop.inspect(container_id)

    def comparable(value):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = [item.removeprefix("CAP_") for item in value]
        return value or None  # Engines answer null for what is empty.

    host = wanted.pop("HostConfig")
    differing = {
        key: (value, seen["HostConfig"].get(key))
        for key, value in host.items()
        if key not in ("CapAdd", "Mounts") and comparable(value) != comparable(seen["HostConfig"].get(key))
    }
    assert differing == {}
    assert {c.removeprefix("CAP_") for c in seen["HostConfig"]["CapAdd"]} == {"SETUID", "SETGID", "KILL"}
    assert {(m["Destination"], m["RW"], m["Type"]) for m in seen["Mounts"]} == {
        ("/etc/group", False, "bind"),
        ("/etc/hosts", False, "bind"),
        ("/etc/passwd", False, "bind"),
        ("/run/enclave/guest.py", False, "bind"),
        ("/run/enclave/socket", False, "bind"),
    }
    for key in ("User", "Entrypoint", "Cmd", "WorkingDir", "NetworkDisabled", "Tty", "StopSignal"):
        assert comparable(seen["Config"][key]) == comparable(wanted[key]), key
    assert seen["Config"]["Healthcheck"]["Test"] == ["NONE"]


async def test_the_guest_has_exactly_three_capabilities_and_a_program_none(workshop):
    guest = AS_PROGRAM + (
        """
def status():
    lines = open("/proc/self/status").read().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
tell(guest=status(), program=as_program(status), pid=os.getpid())
"""
    )
    report = json.loads(await workshop.run(workshop.plan(guest)))
    three = f"{(1 << 5) | (1 << 6) | (1 << 7):016x}"  # KILL, SETGID, SETUID
    none = "0" * 16
    assert report["pid"] == 1
    of_guest = {name: report["guest"][name][0] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert of_guest == {"CapInh": none, "CapPrm": three, "CapEff": three, "CapBnd": three, "CapAmb": none}
    assert report["guest"]["Uid"] == ["0"] * 4
    assert report["guest"]["Gid"] == [str(GROUP)] * 4
    assert report["program"]["Uid"] == [str(UID)] * 4
    assert [report["program"][name][0] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [none] * 4
    for process in ("guest", "program"):
        assert report[process]["NoNewPrivs"] == ["1"]
        assert report[process]["Seccomp"] == ["2"]


async def test_a_program_can_write_only_to_bounded_places(workshop):
    guest = AS_PROGRAM + (
        """
def places():
    points = [line.split()[1] for line in open("/proc/mounts")]
    writable = sorted(p for p in set(points) if os.path.isdir(p) and os.access(p, os.W_OK))
    sizes = {p: (os.statvfs(p).f_blocks * os.statvfs(p).f_frsize, os.statvfs(p).f_files) for p in writable}
    options = {line.split()[1]: line.split()[3].split(",") for line in open("/proc/mounts")}
    refused = {}
    for path in ("/x", "/etc/x", "/usr/x", "/run/x", "/run/enclave/x", "/run/enclave/socket/x"):
        try:
            open(path, "w").close()
        except OSError as error:
            refused[path] = error.errno
    return dict(sizes=sizes, options=options, refused=sorted(refused), owner=os.stat("/sandbox").st_uid)
tell(**as_program(places))
"""
    )
    report = json.loads(await workshop.run(workshop.plan(guest)))
    # A message queue file system has no bytes of its own: the kernel's RLIMIT_MSGQUEUE bounds it.
    report["sizes"].pop("/dev/mqueue", None)
    assert report["sizes"] == {"/dev/shm": [2 * MIB, 1024], "/sandbox": [8 * MIB, 1024], "/tmp": [4 * MIB, 1024]}
    assert len(report["refused"]) == 6
    assert report["owner"] == UID
    assert {"nosuid", "nodev"} <= set(report["options"]["/sandbox"])
    assert "noexec" not in report["options"]["/sandbox"]
    assert "noexec" in report["options"]["/dev/shm"]
    assert "ro" in report["options"]["/"]


async def test_bytes_and_files_end_at_their_limits(workshop):
    guest = AS_PROGRAM + (
        """
def fill():
    files = 0
    try:
        while True:
            open("/sandbox/%d" % files, "w").close()
            files += 1
    except OSError as error:
        no_inode = error.errno
    try:
        with open("/tmp/big", "wb", buffering=0) as big:
            while True:
                size = big.write(bytes(65536)) and big.tell()
    except OSError as error:
        no_space = error.errno
    return dict(files=files, size=size, no_inode=no_inode, no_space=no_space)
tell(**as_program(fill))
"""
    )
    report = json.loads(await workshop.run(workshop.plan(guest)))
    assert 900 < report["files"] < 1024
    assert report["size"] == 4 * MIB
    assert report["no_inode"] == report["no_space"] == 28


async def test_there_is_no_interface_but_the_loopback_and_it_works(workshop):
    guest = AS_PROGRAM + (
        """
import socket
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen()
socket.create_connection(listener.getsockname(), 5)
resolver = open("/etc/resolv.conf").read() if os.path.exists("/etc/resolv.conf") else ""
tell(interfaces=[name for _, name in socket.if_nameindex()], resolver=resolver)
"""
    )
    report = json.loads(await workshop.run(workshop.plan(guest)))
    assert report == {"interfaces": ["lo"], "resolver": ""}


async def test_what_python_programs_need_still_works(workshop):
    guest = AS_PROGRAM + (
        """
def work():
    import concurrent.futures, ctypes, multiprocessing, sqlite3, subprocess, tempfile, threading, venv
    os.chdir("/sandbox")
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        squares = pool.map(abs, [-1, -2])
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        threaded = list(threads.map(abs, [-3]))
    with open("/sandbox/tool", "w") as tool:
        tool.write("#!/bin/sh\\necho ran")
    os.chmod("/sandbox/tool", 0o700)
    return dict(
        squares=squares,
        threaded=threaded,
        cpus=os.cpu_count() > 0,
        tool=subprocess.check_output(["/sandbox/tool"]).decode(),
        random=len(os.urandom(4)),
        temporary=tempfile.mkdtemp().startswith("/tmp"),
        lock=context.Lock() is not None,
        sqlite=sqlite3.connect("/sandbox/db").execute("select 1").fetchone(),
    )
tell(**as_program(work))
"""
    )
    report = json.loads(await workshop.run(workshop.plan(guest)))
    assert report["squares"] == [1, 2]
    assert report["threaded"] == [3]
    assert report["tool"] == "ran\n"
    assert report["sqlite"] == [1]
    assert report["random"] == 4
    assert report["cpus"]
    assert report["temporary"]
    assert report["lock"]


async def test_what_tells_of_the_host_is_masked(workshop):
    guest = AS_PROGRAM + (
        """
def look():
    empty_files = [p for p in ("/proc/interrupts", "/proc/cmdline", "/proc/timer_list", "/proc/keys")
                   if os.path.exists(p) and open(p).read()]
    full_folders = [p for p in ("/sys/fs", "/sys/kernel", "/sys/module", "/sys/class", "/sys/block", "/sys/firmware")
                    if os.path.exists(p) and os.listdir(p)]
    try:
        open("/proc/sys/kernel/hostname", "w")
        writable = True
    except OSError:
        writable = False
    return dict(telling=empty_files + full_folders, writable=writable)
tell(**as_program(look))
"""
    )
    assert json.loads(await workshop.run(workshop.plan(guest))) == {"telling": [], "writable": False}


async def test_limits_of_the_processes_are_set(workshop):
    guest = AS_PROGRAM + (
        """
import resource
names = ("NOFILE", "FSIZE", "CORE")
tell(limits={n: resource.getrlimit(getattr(resource, "RLIMIT_" + n)) for n in names},
     score=int(open("/proc/self/oom_score_adj").read()))
"""
    )
    report = json.loads(await workshop.run(workshop.plan(guest)))
    assert report["limits"] == {"NOFILE": [1024, 1024], "FSIZE": [8 * MIB] * 2, "CORE": [0, 0]}
    assert report["score"] == 500


async def test_a_hostile_images_metadata_is_without_effect(workshop, build):
    tag = await build(
        """
FROM ms-enclave/python:3.11
ENV LD_PRELOAD=/evil.so PYTHONPATH=/evil BASH_ENV=/evil FOO=bar
VOLUME ["/data", "/sandbox/inner", "/tmp"]
HEALTHCHECK --interval=1s CMD ["/bin/true"]
LABEL enclaved.id=spoofed enclaved.hmac=forged
USER 1234
WORKDIR /nowhere
EXPOSE 80
STOPSIGNAL SIGUSR1
ENTRYPOINT ["/bin/false"]
CMD ["argument"]
"""
    )
    image = await workshop.runtime.resolve_image(tag, may_pull=False)
    assert image.env["FOO"] == "bar"
    assert image.volumes == ("/data", "/sandbox/inner", "/tmp")
    guest = AS_PROGRAM + (
        """
mounts = [line.split() for line in open("/proc/self/mounts")]
tell(env=dict(os.environ), cwd=os.getcwd(), uid=os.getuid(), argv=sys.argv[:1],
     volumes={m[1]: m[2] for m in mounts if m[1] in ("/data", "/sandbox/inner", "/tmp")},
     disks=sorted(m[1] for m in mounts if m[0].startswith("/dev/") and "rw" in m[3].split(",")))
"""
    )
    before = {v["Name"] for v in (await workshop.engine.volumes.list())["Volumes"] or []}
    plan = workshop.plan(guest, image=image)
    container_id = await workshop.runtime.create(plan)
    async with workshop.runtime.starting(container_id) as stderr:
        await workshop.ended(container_id)
        await workshop.runtime.status(container_id)
        report = json.loads(stderr.text())
    seen = await workshop.inspect(container_id)
    await workshop.runtime.remove(container_id)

    assert set(report["env"]) == {"PATH", "LANG", "HOME", "HOSTNAME"}
    assert (report["cwd"], report["uid"], report["argv"]) == ("/", 0, ["/run/enclave/guest.py"])
    assert report["volumes"] == {"/data": "tmpfs", "/sandbox/inner": "tmpfs", "/tmp": "tmpfs"}
    assert report["disks"] == []
    assert seen["Config"]["Labels"]["enclaved.id"] == plan.settings.sandbox_id
    assert "Health" not in seen["State"]
    assert {v["Name"] for v in (await workshop.engine.volumes.list())["Volumes"] or []} == before


async def test_counters_tell_of_memory_and_process_limits_that_were_hit(workshop):
    """The engine's own OOMKilled stays false here, because PID 1 lives on."""
    guest = AS_PROGRAM + (
        f"""
import socket, time
if os.fork() == 0:
    os.setresuid({UID}, {UID}, {UID})
    hog = bytearray(1 << 30)
    os._exit(0)
_, status = os.wait()
children = []
try:
    while True:
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        children.append(pid)
except OSError:
    pass
daemon = socket.socket(socket.AF_UNIX)
daemon.connect("/run/enclave/socket/agent.sock")
daemon.sendall(str(os.WTERMSIG(status)).encode())
daemon.shutdown(socket.SHUT_WR)
daemon.recv(1)
"""
    )
    plan = workshop.plan(guest)
    said: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.set_result(await reader.read())
        await done.wait()
        writer.close()
        await writer.wait_closed()

    async with await _listen(plan, serve):
        async with workshop.running(plan) as container_id:
            async with asyncio.timeout(60):
                assert await said == b"9"
            counters = workshop.runtime.counters(container_id)
            usage = workshop.runtime.usage(container_id)
            status = await workshop.runtime.status(container_id)
        done.set()

    assert counters is not None
    assert counters.oom_kills == 1
    assert counters.pids_limit_hits >= 1
    assert 0 < counters.memory_peak_bytes <= counters.memory_limit_bytes == plan.spec.memory_limit_bytes
    assert 0 < counters.pids_peak <= counters.pids_limit == plan.spec.pids_limit
    assert usage is not None
    assert usage.pids > 1
    assert 0 < usage.memory_bytes <= usage.memory_peak_bytes == counters.memory_peak_bytes
    assert usage.cpu_user_s + usage.cpu_system_s > 0
    assert status is not None
    assert status.running
    await workshop.runtime.remove(container_id)
    assert workshop.runtime.counters(container_id) is None


async def test_the_guest_reaches_the_daemons_socket_and_a_program_does_not(workshop):
    guest = AS_PROGRAM + (
        """
import socket
def connect():
    daemon = socket.socket(socket.AF_UNIX)
    return daemon.connect_ex("/run/enclave/socket/agent.sock")
tell(program=as_program(connect), guest=connect())
"""
    )
    plan = workshop.plan(guest)
    accepted = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        writer.close()
        await writer.wait_closed()

    async with await _listen(plan, serve):
        report = json.loads(await workshop.run(plan))
        await accepted.wait()
    assert report == {"program": errno.EACCES, "guest": 0}


async def _listen(plan, serve) -> asyncio.Server:
    """Listens as the daemon does: only its own group may pass the directory and use the socket."""
    path = plan.socket_dir / "agent.sock"
    server = await asyncio.start_unix_server(serve, path)
    for made, mode in ((path, 0o660), (plan.socket_dir, 0o710)):
        os.chown(made, -1, GROUP)
        made.chmod(mode)
    return server
