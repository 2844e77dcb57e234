"""Ways to the host: kernel interfaces, mounts, devices, descriptors, the runtime. Nothing is written, only opened."""

from __future__ import annotations

from typing import Final

from enclaved.doctor.attacks.base import Attack, Category, Judge, Program
from enclaved.doctor.attacks.judges import NO_SUCH, all_of, refuses, tells

_NAMESPACE_CALLS: Final = ("unshare user", "unshare mount", "unshare net", "unshare pid", "clone user", "setns")
_MOUNT_CALLS: Final = (
    "mount",
    "umount2",
    "pivot_root",
    "fsopen",
    "fsmount",
    "move_mount",
    "open_tree",
    "mount_setattr",
)
_MODULE_CALLS: Final = ("init_module", "finit_module", "delete_module", "kexec_load", "bpf", "swapon", "chroot")
_DEVICES: Final = ("mem", "kmsg", "kvm", "fuse", "net/tun", "loop-control", "sda", "vda", "mapper/control")
_KNOBS: Final = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sysrq-trigger",
    "/sys/kernel/uevent_helper",
)


def _attack(name: str, sentence: str, source: str, judge: Judge) -> Attack:
    return Attack(f"escape.{name}", Category.ESCAPE, sentence, judge, Program(source))


ATTACKS: Final = (
    _attack(
        "kernel-knobs",
        "Opens host-wide knobs of the kernel for writing.",
        f"""
for path in {_KNOBS!r}:
    fd = attempt(path, os.open, path, os.O_WRONLY)
    if fd is not None:
        os.close(fd)
""",
        refuses(*_KNOBS, by=NO_SUCH),
    ),
    _attack(
        "namespaces",
        "Makes namespaces of its own, in which it would be root.",
        """
for kind, flag in (("user", 0x10000000), ("mount", 0x00020000), ("net", 0x40000000), ("pid", 0x20000000)):
    child = os.fork()
    if not child:
        attempt("unshare " + kind, syscall, "unshare", flag)
        os._exit(0)
    os.waitpid(child, 0)
def clone():
    made = syscall("clone", 0x10000000 | 17, 0, 0, 0, 0)
    if made == 0:
        os._exit(0)
    os.waitpid(made, 0)
attempt("clone user", clone)
call("setns", -1, 0)
""",
        refuses(*_NAMESPACE_CALLS),
    ),
    _attack(
        "mounts",
        "Mounts and unmounts, with the old calls and with the new ones.",
        """
call("mount", b"none", b"/nowhere-" + NONCE.encode(), b"tmpfs", 0, 0)
call("umount2", b"/nowhere-" + NONCE.encode(), 0)
call("pivot_root", b"/nowhere-" + NONCE.encode(), b"/nowhere")
call("fsopen", b"no-such-fs", 0)
call("fsmount", -1, 0, 0)
call("move_mount", -1, b"", -1, b"", 0)
call("open_tree", -1, b"", 0)
call("mount_setattr", -1, b"", 0, 0, 0)
""",
        refuses(*_MOUNT_CALLS),
    ),
    _attack(
        "kernel-code",
        "Loads code into the kernel: modules, another kernel, BPF.",
        """
call("init_module", 0, 0, 0)
call("finit_module", -1, b"", 0)
call("delete_module", b"no-such-module-" + NONCE.encode(), 0)
call("kexec_load", 0, 0, 0, 0)
call("bpf", 9999, 0, 0)
call("swapon", b"/nowhere", 0)
call("chroot", b"/nowhere-" + NONCE.encode())
""",
        refuses(*_MODULE_CALLS),
    ),
    _attack(
        "roots-of-others",
        "Reaches the file system of other processes through /proc, up to a file of the host.",
        """
attempt("root of PID 1", os.listdir, "/proc/1/root/")
attempt("directory of PID 1", os.listdir, "/proc/1/cwd/")
attempt("descriptors of PID 1", os.listdir, "/proc/1/fd/")
for start in ("", "/proc/1/root", "/proc/self/root", "/proc/self/cwd/../../../../../..", "/proc/thread-self/root"):
    for path in FACTS["host_files"]:
        try:
            with open(start + path) as file:
                print(file.read(4096))
        except OSError:
            pass
tell("looked", len(FACTS["host_files"]))
""",
        all_of(
            refuses("root of PID 1", "directory of PID 1", "descriptors of PID 1", by=NO_SUCH),
            tells("looked", bool, "it looked for a file of the host"),
        ),
    ),
    _attack(
        "devices",
        "Makes device files, and opens those of disks, memory and hypervisors.",
        """
import stat
attempt("make a character device", os.mknod, "/tmp/null-" + NONCE, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
attempt("make a block device", os.mknod, "/tmp/disk-" + NONCE, 0o600 | stat.S_IFBLK, os.makedev(7, 199))
for name in DEVICES:
    fd = attempt(name, os.open, "/dev/" + name, os.O_RDONLY | os.O_NONBLOCK)
    if fd is not None:
        os.close(fd)
""".replace("DEVICES", repr(_DEVICES)),
        refuses("make a character device", "make a block device", *_DEVICES, by=NO_SUCH),
    ),
    _attack(
        "sockets-of-the-host",
        "Looks for sockets of the engine and of the daemon, and connects to each that it finds.",
        """
found = ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock"]
found += FACTS["host_sockets"]
seen = 0
for top in ("/run", "/var/run", "/tmp", "/mnt", "/host"):
    for directory, _, names in os.walk(top):
        for name in names:
            seen += 1
            if seen < 2000 and name.endswith((".sock", ".socket")):
                found.append(os.path.join(directory, name))
found.append("/run/enclave/socket/agent.sock")
reached = []
for path in sorted(set(found)):
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
            probe.sendall(NONCE.encode())
        except OSError:
            continue
        reached.append(path)
tell("tried", len(found))
tell("reached", reached)
""",
        all_of(tells("reached", lambda value: value == [], "nothing"), tells("tried", bool, "it tried")),
    ),
    _attack(
        "become-root",
        "Becomes root again, by every call and through a file with the setuid bit.",
        """
attempt("setuid", os.setuid, 0)
attempt("setgid", os.setgid, 0)
attempt("setresuid", os.setresuid, 0, 0, 0)
attempt("setresgid", os.setresgid, 0, 0, 0)
attempt("setgroups", os.setgroups, [0])
attempt("own a file as root", os.chown, "/tmp", 0, 0)
import shutil, subprocess
path = "/tmp/root-" + NONCE
shutil.copy("/bin/cat", path)
os.chmod(path, 0o6755)
kept = subprocess.run([path, "/proc/self/status"], capture_output=True, text=True).stdout.splitlines()
tell("root", any(line.startswith("Uid:") and "0" in line.split()[1:] for line in kept) or not kept)
""",
        all_of(
            refuses("setuid", "setgid", "setresuid", "setresgid", "setgroups", "own a file as root"),
            tells("root", lambda value: value is False, "it is not root"),
        ),
    ),
    _attack(
        "file-handles",
        "Opens files by handle, past every path.",
        """
call("name_to_handle_at", -1, b"", 0, 0, 0)
call("open_by_handle_at", -1, 0, 0)
""",
        refuses("name_to_handle_at", "open_by_handle_at"),
    ),
    _attack(
        "control-groups",
        "Opens the files of control groups that would lift its limits or run a program on the host.",
        """
places = ["/sys/fs/cgroup"]
for line in open("/proc/self/mounts"):
    fields = line.split()
    if fields[2] in ("cgroup", "cgroup2"):
        places.append(fields[1])
wanted = ("release_agent", "notify_on_release", "cgroup.procs", "memory.limit_in_bytes", "memory.max", "pids.max")
opened, tried = [], 0
for place in places:
    for directory, _, names in os.walk(place):
        for name in wanted:
            tried += 1
            try:
                os.close(os.open(os.path.join(directory, name), os.O_WRONLY))
                opened.append(os.path.join(directory, name))
            except OSError:
                pass
        if tried > 3000:
            break
tell("tried", tried or len(places))
tell("opened", opened[:5])
""",
        all_of(tells("opened", lambda value: value == [], "none could be opened"), tells("tried", bool, "it tried")),
    ),
    _attack(
        "programs-of-the-runtime",
        "Opens the program and the memory of PID 1 for writing, as attacks on container runtimes did.",
        """
for path in ("/proc/1/exe", "/proc/1/mem", "/proc/1/environ", "/proc/1/maps", "/run/enclave/guest.py"):
    fd = attempt(path, os.open, path, os.O_RDWR)
    if fd is not None:
        os.close(fd)
""",
        refuses(
            *("/proc/1/exe", "/proc/1/mem", "/proc/1/environ", "/proc/1/maps", "/run/enclave/guest.py"),
            by=NO_SUCH | {"ETXTBSY"},
        ),
    ),
    _attack(
        "leaked-descriptors",
        "Uses descriptors that the runtime forgot to close.",
        """
import stat
found = []
names = os.listdir("/proc/self/fd")  # closed again, so that it does not count itself
for name in names:
    try:
        mode = os.fstat(int(name)).st_mode
        target = os.readlink("/proc/self/fd/" + name)
    except OSError:
        continue
    if int(name) > 2 and (stat.S_ISDIR(mode) or stat.S_ISBLK(mode) or target.startswith("/")):
        found.append([name, target])
tell("found", found)
tell("directory", os.path.realpath("/proc/self/cwd"))
""",
        all_of(
            tells("found", lambda value: value == [], "no descriptor of anybody else"),
            tells("directory", lambda value: isinstance(value, str) and value != "/", "its own directory"),
        ),
    ),
    _attack(
        "writable-mounts",
        "Looks for a mount of the host's disks that can be written to.",
        """
found = []
for line in open("/proc/self/mountinfo"):
    before, _, after = line.partition(" - ")
    fields, kind = before.split(), after.split()[0]
    writable = "rw" in fields[5].split(",")
    if writable and kind not in ("tmpfs", "proc", "devpts", "mqueue", "sysfs", "cgroup", "cgroup2"):
        found.append([fields[4], kind])
tell("writable", found)
tell("device files", sorted(name for name in os.listdir("/dev") if name in ("mem", "kmsg", "sda", "vda", "kvm")))
""",
        all_of(
            tells("writable", lambda value: value == [], "no writable mount but those in memory"),
            tells("device files", lambda value: value == [], "no device of the host"),
        ),
    ),
    _attack(
        "masked-files",
        "Reads what the kernel tells of the host's memory, keys, timers and hardware.",
        """
read = []
for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/interrupts", "/proc/cmdline"):
    try:
        with open(path, "rb") as file:
            if file.read(64):
                read.append(path)
    except OSError:
        pass
for path in ("/sys/firmware", "/sys/kernel", "/sys/fs", "/sys/class", "/proc/acpi", "/proc/scsi"):
    try:
        if os.listdir(path):
            read.append(path)
    except OSError:
        pass
tell("read", read)
""",
        tells("read", lambda value: value == [], "nothing of it can be read"),
    ),
)
