"""Reaching what is not the sandbox. Routes are looked up by connecting UDP sockets, which sends nothing.

TCP is tried only against the loopback, and against listeners that whoever runs the attack opened (``host_ports``).
"""

from __future__ import annotations

from typing import Final

from enclaved.doctor.attacks.base import Attack, Category, Judge, Program
from enclaved.doctor.attacks.judges import NOBODY_THERE, UNREACHABLE, all_of, on_host, refuses, tells

_ROUTES: Final = {
    "a public address": "192.0.2.1",
    "another public address": "198.51.100.7",
    "a private network": "10.255.255.254",
    "another private network": "172.17.0.1",
    "a third private network": "192.168.255.254",
    "the link-local network": "169.254.0.1",
    "carrier-grade NAT": "100.64.0.1",
}


def _loopback_only(status: dict[str, str]) -> str:
    extra = set(status.get("net", "?").split()) - {"lo"}
    return f"it has the interfaces {' '.join(sorted(extra))}" if extra else ""


def _attack(name: str, sentence: str, source: str, judge: Judge, *, looks: bool = False) -> Attack:
    needs = frozenset({"host"}) if looks else frozenset[str]()
    program = Program(source, look_when_ready=looks, stdin=b"" if looks else None)
    return Attack(f"network.{name}", Category.NETWORK, sentence, judge, program, needs=needs)


ATTACKS: Final = (
    _attack(
        "interfaces",
        "Has an interface but the loopback; the host looks.",
        "ready()\n",
        on_host(_loopback_only),
        looks=True,
    ),
    _attack(
        "routes",
        "Has a route to public, private or link-local addresses, where metadata services are.",
        f"""
for name, address in {_ROUTES!r}.items():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        attempt(name, probe.connect, (address, 9))
""",
        refuses(*_ROUTES, by=UNREACHABLE),
    ),
    _attack(
        "routes-of-version-6",
        "Has a route to addresses of version 6.",
        """
for name, address in (("public", "2001:db8::1"), ("local", "fd00::1"), ("multicast", "ff02::1")):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        attempt(name, probe.connect, (address, 9))
""",
        refuses("public", "local", "multicast", by=UNREACHABLE | {"EINVAL"}),
    ),
    _attack(
        "services-of-the-host",
        "Connects to services that listen on the host's loopback and on gateways.",
        """
for address, port in FACTS["host_ports"]:
    reach("%s:%d" % (address, port), socket.AF_INET, (address, port))
tell("tried", len(FACTS["host_ports"]))
""",
        tells("tried", bool, "it tried and reached nobody"),
    ),
    _attack(
        "abstract-sockets-of-the-host",
        "Connects to abstract unix sockets of the host's programs.",
        """
for name in FACTS["abstract"]:
    reach("connect", socket.AF_UNIX, "\\0" + name)
""",
        refuses("connect", by=NOBODY_THERE),
    ),
    _attack(
        "names",
        "Asks the engine's resolver, which forwards from the host.",
        """
reach("the engine's resolver", socket.AF_INET, ("127.0.0.11", 53))
found = []
try:
    for line in open("/etc/resolv.conf"):
        fields = line.split()
        if len(fields) > 1 and fields[0] == "nameserver" and not fields[1].startswith("127."):
            with socket.socket(socket.AF_INET6 if ":" in fields[1] else socket.AF_INET, socket.SOCK_DGRAM) as probe:
                try:
                    probe.connect((fields[1], 53))
                    found.append(fields[1])
                except OSError:
                    pass
except OSError:
    pass
tell("resolvers", found)
""",
        all_of(
            refuses("the engine's resolver", by=NOBODY_THERE),
            tells("resolvers", lambda value: value == [], "no resolver can be reached"),
        ),
    ),
    _attack(
        "raw-sockets",
        "Opens sockets that see or forge packets.",
        """
for name, family, kind, protocol in (
    ("raw ICMP", socket.AF_INET, socket.SOCK_RAW, 1),
    ("raw TCP", socket.AF_INET, socket.SOCK_RAW, 6),
    ("raw version 6", socket.AF_INET6, socket.SOCK_RAW, 58),
    ("packets", 17, socket.SOCK_RAW, 3),
):
    made = attempt(name, socket.socket, family, kind, protocol)
    if made is not None:
        made.close()
""",
        refuses("raw ICMP", "raw TCP", "raw version 6", "packets", by=UNREACHABLE),
    ),
    _attack(
        "makes-interfaces",
        "Makes a network interface, and changes the loopback's.",
        """
import fcntl, struct
with socket.socket(16, socket.SOCK_RAW, 0) as link:
    link.settimeout(3)
    name = b"dummy9\\0"
    attribute = struct.pack("=HH", 4 + len(name), 3) + name + b"\\0"
    kind = struct.pack("=HH", 10, 1) + b"dummy\\0" + b"\\0\\0"
    info = struct.pack("=HH", 4 + len(kind), 18) + kind
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute + info
    link.send(struct.pack("=IHHII", 16 + len(body), 16, 0x605, 1, 0) + body)
    answer = link.recv(4096)
    code = -struct.unpack_from("=i", answer, 16)[0]
    tell("a new interface", named(code) if code else "ok")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    attempt("the loopback", fcntl.ioctl, probe, 0x8914, struct.pack("16sh14x", b"lo", 0x49))
""",
        refuses("a new interface", "the loopback", by=UNREACHABLE | {"EOPNOTSUPP"}),
    ),
)
