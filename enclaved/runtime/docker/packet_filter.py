"""Sets the packet filter of a network namespace by netlink, and reads it back. Runs in a container, by itself.

This file is the program: ``python3 -c SOURCE ARGUMENTS``, with Python 3.8 or newer and its standard library only.
It needs NET_ADMIN and no other right. The exit code is 0 if the kernel has exactly these rules, an errno if it refused
them, and `DIFFERENT` or `NOT_UNDERSTOOD`.

Out: the loopback, what belongs to connections that were let through, the name servers, and every address of IPv4 that
is not closed. In: the loopback, answers, and the published ports from the one address from which the engine forwards
them. All else is dropped, IPv6 as a whole.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

DIFFERENT = 250
NOT_UNDERSTOOD = 251

TABLE = "enclaved"
INET, IPV4 = 1, 2
HOOKS = {"in": 1, "through": 2, "out": 3}
DROP, ACCEPT = 0, 1
ESTABLISHED, RELATED = 2, 4
NESTED = 0x8000
SUBSYSTEM = 10 << 8
NEWTABLE, NEWCHAIN, GETCHAIN, NEWRULE, GETRULE = 0, 3, 4, 6, 7
BATCH_BEGIN, BATCH_END = 16, 17
ERROR, DONE = 2, 3
REQUEST, ACKNOWLEDGE, DUMP, EXCLUSIVE, CREATE, APPEND = 1, 4, 0x300, 0x200, 0x400, 0x800
LOOPBACK_DEVICE = 772
PATIENCE_S = 10.0


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, filled up to four bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *values: bytes) -> bytes:
    """An attribute that holds others."""
    return attribute(kind | NESTED, b"".join(values))


def number(kind: int, value: int) -> bytes:
    """An attribute with a number of 32 bits."""
    return attribute(kind, struct.pack(">I", value))


def text(kind: int, value: str) -> bytes:
    """An attribute with text."""
    return attribute(kind, value.encode() + b"\0")


def expression(name: str, *values: bytes) -> bytes:
    """One step of a rule."""
    return nested(1, text(1, name), nested(2, *values))


def meta(key: int) -> bytes:
    """Loads a fact about a packet."""
    return expression("meta", number(2, key), number(1, 1))


def equals(value: bytes) -> bytes:
    """Goes on with the rule only if what was loaded is this."""
    return expression("cmp", number(1, 1), number(2, 0), nested(3, attribute(1, value)))


def differs(value: bytes) -> bytes:
    """Goes on with the rule only if what was loaded is not this."""
    return expression("cmp", number(1, 1), number(2, 1), nested(3, attribute(1, value)))


def masked(mask: bytes) -> bytes:
    """Keeps these bits of what was loaded."""
    values = number(1, 1), number(2, 1), number(3, len(mask))
    return expression("bitwise", *values, nested(4, attribute(1, mask)), nested(5, attribute(1, bytes(len(mask)))))


def payload(base: int, offset: int, length: int) -> bytes:
    """Loads bytes of a packet: of its network header (1) or of its transport header (2)."""
    return expression("payload", number(1, 1), number(2, base), number(3, offset), number(4, length))


def verdict(code: int) -> bytes:
    """Decides."""
    return expression("immediate", number(1, 0), nested(2, nested(2, number(1, code))))


def state(bits: int) -> bytes:
    """Goes on only for packets of connections in one of these states."""
    wanted = struct.pack("=I", bits)
    return expression("ct", number(2, 0), number(1, 1)) + masked(wanted) + differs(bytes(4))


def ipv4() -> bytes:
    """Goes on only for packets of IPv4."""
    return meta(15) + equals(bytes([IPV4]))


def protocol(name: str) -> bytes:
    """Goes on only for packets of a protocol."""
    return meta(16) + equals(bytes([{"icmp": 1, "tcp": 6, "udp": 17}[name]]))


def address(offset: int, network: str) -> bytes:
    """Goes on only for packets whose source (12) or destination (16) lies in a network."""
    found = ipaddress.IPv4Network(network)
    steps = ipv4() + payload(1, offset, 4)
    if found.prefixlen < 32:
        steps += masked(found.netmask.packed)
    return steps + equals(found.network_address.packed)


def port(value: int) -> bytes:
    """Goes on only for packets to a port."""
    return payload(2, 2, 2) + equals(struct.pack(">H", value))


def loopback(key: int) -> bytes:
    """Goes on only for packets that came (8) or go (9) through the loopback."""
    return meta(key) + equals(struct.pack("=H", LOOPBACK_DEVICE))


def rules(wanted: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Every rule, with its chain, in order. What no rule decides is dropped."""
    for network in wanted["hidden"]:
        yield "out", address(16, network) + verdict(DROP)
    yield "out", loopback(9) + verdict(ACCEPT)
    # Not what is merely related to a connection: with a helper of the kernel its other end could choose what that is.
    yield "out", state(ESTABLISHED) + verdict(ACCEPT)
    for resolver in wanted["resolvers"]:
        for name in ("udp", "tcp"):
            yield "out", address(16, resolver) + protocol(name) + port(53) + verdict(ACCEPT)
    for network in wanted["closed"]:
        yield "out", address(16, network) + verdict(DROP)
    yield "out", ipv4() + verdict(ACCEPT)
    yield "in", loopback(8) + verdict(ACCEPT)
    yield "in", state(ESTABLISHED) + verdict(ACCEPT)
    yield "in", ipv4() + protocol("icmp") + state(RELATED) + verdict(ACCEPT)
    for name, value in wanted["ports"]:
        yield "in", address(12, wanted["gateway"]) + protocol(name) + port(value) + verdict(ACCEPT)


def message(kind: int, flags: int, sequence: int, family: int, body: bytes = b"", resource: int = 0) -> bytes:
    """One message to the kernel."""
    head = struct.pack("=IHHII", 20 + len(body), kind, REQUEST | flags, sequence, 0)
    return head + struct.pack(">BBH", family, 0, resource) + body


def batch(wanted: dict[str, Any]) -> tuple[bytes, int]:
    """All messages that make the filter, of which the kernel takes all or none; and how many it answers."""
    chains = [
        text(1, TABLE) + text(3, name) + nested(4, number(1, hook), number(2, 0)) + number(5, DROP) + text(7, "filter")
        for name, hook in HOOKS.items()
    ]
    parts = [(NEWTABLE, EXCLUSIVE, text(1, TABLE))]
    parts += [(NEWCHAIN, EXCLUSIVE, chain) for chain in chains]
    parts += [(NEWRULE, APPEND, text(1, TABLE) + text(2, chain) + nested(4, rule)) for chain, rule in rules(wanted)]
    sent = [message(BATCH_BEGIN, 0, 1, 0, resource=10)]
    for sequence, (kind, flags, body) in enumerate(parts, 2):
        sent.append(message(SUBSYSTEM | kind, CREATE | ACKNOWLEDGE | flags, sequence, INET, body))
    sent.append(message(BATCH_END, 0, len(parts) + 2, 0, resource=10))
    return b"".join(sent), len(parts)


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages in what the kernel sent."""
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if length < 16 or length > len(data):
            raise ValueError("half a message")
        yield kind, data[16:length]
        data = data[(length + 3) & ~3 :]


def refused(body: bytes) -> None:
    """Raises OSError if an answer says so."""
    code = -struct.unpack_from("=i", body)[0]
    if code:
        raise OSError(code, "the kernel refused")


def attributes(data: bytes) -> list[tuple[int, bytes]]:
    """The attributes in a message, without the mark of those that hold others."""
    found = []
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4 or length > len(data):
            raise ValueError("half an attribute")
        found.append((kind & 0x3FFF, data[4:length]))
        data = data[(length + 3) & ~3 :]
    return found


def covers(sent: bytes, seen: bytes) -> bool:
    """Whether the kernel has every attribute that was sent, with its value. It may have more, as handles."""
    rest = attributes(seen)
    while len(sent) >= 4:
        length, kind = struct.unpack_from("=HH", sent)
        value, sent = sent[4:length], sent[(length + 3) & ~3 :]
        at = next((at for at, (found, _) in enumerate(rest) if found == kind & 0x3FFF), None)
        if at is None:
            return False
        found = rest.pop(at)[1]
        if not (covers(value, found) if kind & NESTED else value == found):
            return False
    # Of a list, such as the steps of a rule, there is no more than was sent; its members have the number 1.
    return not any(kind == 1 for kind, _ in rest)


def ask(connection: socket.socket, kind: int) -> list[bytes]:
    """All chains, or all rules, of the table."""
    connection.send(message(SUBSYSTEM | kind, DUMP, 1, INET, text(1, TABLE)))
    found: list[bytes] = []
    while True:
        for answer, body in messages(connection.recv(1 << 18)):
            if answer == DONE:
                return found
            if answer == ERROR:
                refused(body)
            elif dict(attributes(body[4:])).get(1) == TABLE.encode() + b"\0":
                found.append(body[4:])


def holds(connection: socket.socket, wanted: dict[str, Any]) -> bool:
    """Whether the kernel has the chains and the rules, and no others."""
    chains = {dict(attributes(chain))[3]: dict(attributes(chain)) for chain in ask(connection, GETCHAIN)}
    if len(chains) != len(HOOKS):
        return False
    for name, hook in HOOKS.items():
        chain = chains.get(name.encode() + b"\0", {})
        place = dict(attributes(chain.get(4, b"")))
        if (place.get(1), place.get(2)) != (struct.pack(">I", hook), bytes(4)) or chain.get(5) != bytes(4):
            return False
    seen = [dict(attributes(rule)) for rule in ask(connection, GETRULE)]
    for name in HOOKS:
        ours = [rule for chain, rule in rules(wanted) if chain == name]
        theirs = [rule[4] for rule in seen if rule[2] == name.encode() + b"\0"]
        if len(ours) != len(theirs) or not all(map(covers, ours, theirs)):
            return False
    return len(seen) == len(list(rules(wanted)))


def connect() -> socket.socket:
    """A connection to the kernel's packet filter."""
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    connection.settimeout(PATIENCE_S)
    connection.bind((0, 0))
    return connection


def install(connection: socket.socket, wanted: dict[str, Any]) -> None:
    """Makes the filter. Raises OSError."""
    data, answers = batch(wanted)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    connection.send(data)
    while answers > 0:
        for kind, body in messages(connection.recv(1 << 18)):
            if kind == ERROR:
                refused(body)
                answers -= 1


def main(arguments: list[str]) -> int:
    """Sets the filter that the one argument describes."""
    try:
        wanted = json.loads(arguments[0])
        with connect() as connection:
            install(connection, wanted)
            return 0 if holds(connection, wanted) else DIFFERENT
    except (ValueError, KeyError, IndexError, TypeError, struct.error):
        return NOT_UNDERSTOOD
    except OSError as error:
        return min(error.errno or 110, DIFFERENT - 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
