"""Whether privilege really is gone: what the kernel says of the process, and calls that no program needs."""

from __future__ import annotations

from typing import Final

from enclaved.doctor.attacks.base import Attack, Category, Judge, Program
from enclaved.doctor.attacks.judges import NO_SUCH, REFUSALS, all_of, ends, on_host, refuses, stays_below, tells

_EXOTIC: Final = (
    *("io_uring_setup", "io_uring_register", "userfaultfd", "perf_event_open", "add_key", "request_key", "keyctl"),
    *("process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "memfd_secret", "vmsplice", "fanotify_init"),
    *("quotactl", "lookup_dcookie", "process_madvise", "ptrace", "acct", "syslog"),
)
_CLOCKS: Final = ("clock_settime", "settimeofday", "sethostname", "setdomainname")
_FAMILIES: Final = {
    "AF_PACKET": 17,
    "AF_KEY": 15,
    "AF_CAN": 29,
    "AF_TIPC": 30,
    "AF_BLUETOOTH": 31,
    "AF_ALG": 38,
    "AF_NFC": 39,
    "AF_VSOCK": 40,
    "AF_SMC": 43,
    "AF_XDP": 44,
    "AF_RDS": 21,
}
_PLACES: Final = (
    "/",
    "/bin",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/opt",
    "/root",
    "/run",
    "/usr",
    "/usr/lib",
    "/var",
    "/var/tmp",
)
_SETS: Final = ("CapEff", "CapPrm", "CapInh", "CapAmb")


def _no_capabilities(status: dict[str, str]) -> str:
    held = [name for name in _SETS if int(status.get(name, "1"), 16)]
    return f"it has capabilities in {', '.join(held)}" if held else ""


def _own_user(status: dict[str, str]) -> str:
    users, groups = status.get("Uid", "0").split(), status.get("Gid", "0").split()
    if {"0", "65534"} & {*users, *groups} or len(set(users)) != 1 or len(set(groups)) != 1:
        return f"its users are {' '.join(users)}, its groups {' '.join(groups)}"
    extra = set(status.get("Groups", "0").split()) - set(groups)
    return f"it is in the groups {' '.join(sorted(extra))}" if extra else ""


def _no_new_privileges(status: dict[str, str]) -> str:
    return "" if status.get("NoNewPrivs") == "1" else "no-new-privileges is not set"


def _two_filters(status: dict[str, str]) -> str:
    if status.get("Seccomp") != "2":
        return "no filter of system calls is in force"
    filters = int(status.get("Seccomp_filters", "2"))  # kernels before 5.9 do not tell
    return "" if filters >= 2 else "only one filter of system calls is in force"


def _attack(name: str, sentence: str, source: str, judge: Judge, *, looks: bool = False) -> Attack:
    needs = frozenset({"host"}) if looks else frozenset[str]()
    program = Program(source, look_when_ready=looks, stdin=b"" if looks else None)
    return Attack(f"profile.{name}", Category.PROFILE, sentence, judge, program, needs=needs)


ATTACKS: Final = (
    _attack(
        "capabilities",
        "Keeps capabilities; the host looks at the process.",
        "ready()\n",
        on_host(_no_capabilities),
        looks=True,
    ),
    _attack("user", "Keeps root's user or a group; the host looks.", "ready()\n", on_host(_own_user), looks=True),
    _attack(
        "no-new-privileges",
        "Could gain privileges by running a program; the host looks.",
        "ready()\n",
        on_host(_no_new_privileges),
        looks=True,
    ),
    _attack(
        "filters",
        "Runs without the two filters of system calls; the host looks.",
        "ready()\n",
        on_host(_two_filters),
        looks=True,
    ),
    _attack(
        "exotic-calls",
        "Makes system calls in which holes were found again and again, with harmless arguments.",
        """
call("io_uring_setup", 0, 0)
call("io_uring_register", -1, 0, 0, 0)
call("userfaultfd", 0xffff)
call("perf_event_open", 0, 0, -1, -1, 0)
call("add_key", 0, 0, 0, 0, 0)
call("request_key", 0, 0, 0, 0)
call("keyctl", 9999, 0, 0, 0, 0)
call("process_vm_readv", os.getpid(), 0, 0, 0, 0, 9)
call("process_vm_writev", os.getpid(), 0, 0, 0, 0, 9)
call("kcmp", 1, 1, 99, 0, 0)
call("pidfd_getfd", -1, 0, 0)
call("memfd_secret", 0xffff)
call("vmsplice", -1, 0, 0, 0)
call("fanotify_init", 0xffff, 0)
call("quotactl", 0xffff, 0, 0, 0)
call("lookup_dcookie", 0, 0, 0)
call("process_madvise", -1, 0, 0, 0, 0)
call("ptrace", 0x4200, 1, 0, 0)
call("acct", b"/nowhere-" + NONCE.encode())
call("syslog", 99, 0, 0)
""",
        refuses(*_EXOTIC),
    ),
    _attack(
        "socket-families",
        "Opens sockets of families that reach hypervisors, buses and rarely tested code.",
        f"""
for name, family in {_FAMILIES!r}.items():
    made = attempt(name, socket.socket, family, socket.SOCK_RAW if family in (17, 15) else socket.SOCK_STREAM)
    if made is not None:
        made.close()
""",
        refuses(*_FAMILIES, by=REFUSALS | {"EAFNOSUPPORT", "EPROTONOSUPPORT"}),
    ),
    _attack(
        "netlink",
        "Opens sockets of netlink for more than a look at its interfaces, and for messages between programs.",
        """
for name, protocol in (("user", 2), ("events", 15), ("generic", 16)):
    made = attempt(name, socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    if made is not None:
        made.close()
""",
        refuses("user", "events", "generic", by=REFUSALS | {"EPROTONOSUPPORT"}),
    ),
    _attack(
        "other-calling-convention",
        "Calls the kernel by its second convention, which a filter of the first does not see.",
        """
import ctypes
reader, writer = os.pipe()
child = os.fork()
if not child:
    libc = ctypes.CDLL(None, use_errno=True)
    if platform.machine() == "x86_64":
        result = libc.syscall(ctypes.c_long(0x40000000 | 39))
        os.write(writer, b"through" if result > 0 else named(ctypes.get_errno()).encode())
    else:
        os.write(writer, b"ENOSYS")
    os._exit(0)
os.close(writer)
status = os.waitpid(child, 0)[1]
tell("ended", os.read(reader, 64).decode() or "killed by %d" % (status & 0x7f))
""",
        tells("ended", lambda value: value in ("killed by 31", "ENOSYS", "EPERM"), "refused or ended by the filter"),
    ),
    _attack(
        "read-only-root",
        "Writes outside of the scratch places.",
        f"""
for place in {_PLACES!r}:
    def write():
        path = os.path.join(place, "marker-" + NONCE)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        os.unlink(path)
    attempt(place, write)
""",
        refuses(*_PLACES, by=NO_SUCH),
    ),
    _attack(
        "process-limits",
        "Lifts its own limits.",
        """
import resource
for name in ("RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_FSIZE"):
    kind = getattr(resource, name)
    def lift():
        try:
            resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except ValueError:
            raise PermissionError(errno.EPERM, name)
    attempt(name, lift)
tell("open files", resource.getrlimit(resource.RLIMIT_NOFILE)[1])
tell("core", resource.getrlimit(resource.RLIMIT_CORE)[1])
""",
        all_of(
            refuses("RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_FSIZE"),
            stays_below("open files", 65536),
            tells("core", lambda value: value == 0, "no core dumps"),
        ),
    ),
    _attack(
        "out-of-memory-score",
        "Makes others the kernel's choice when memory runs out, itself last.",
        """
def lower():
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    try:
        os.write(fd, b"-900")
    finally:
        os.close(fd)
attempt("lower", lower)
""",
        refuses("lower"),
    ),
    _attack(
        "priorities",
        "Takes the processor from everybody: real-time scheduling and negative niceness.",
        """
attempt("real time", os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
attempt("round robin", os.sched_setscheduler, 0, os.SCHED_RR, os.sched_param(1))
attempt("niceness", os.setpriority, os.PRIO_PROCESS, 0, -5)
""",
        refuses("real time", "round robin", "niceness"),
    ),
    _attack(
        "clock-and-names",
        "Sets the clock and the names of the machine.",
        """
call("clock_settime", 0, 0)
call("settimeofday", 1, 0)
call("sethostname", 1, 0x7fffffff)
call("setdomainname", 1, 0x7fffffff)
""",
        refuses(*_CLOCKS),
    ),
    _attack(
        "inherited-filter",
        "Gets rid of the filter by running another program, and by threads.",
        """
import subprocess, threading
code = "import ctypes; c = ctypes.CDLL(None, use_errno=True); r = c.syscall(425, 0, 0); print(r, ctypes.get_errno())"
done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
tell("child", done.stdout.split())
found = []
def look():
    try:
        found.append("ok" if syscall("io_uring_setup", 0, 0) is not None else "")
    except OSError as error:
        found.append(named(error.errno))
thread = threading.Thread(target=look)
thread.start()
thread.join()
tell("thread", found[0])
""",
        all_of(
            tells("child", lambda value: value in (["-1", "1"], ["-1", "38"]), "refused in a child"),
            refuses("thread"),
            ends("EXITED", exit_code=0),
        ),
    ),
)
