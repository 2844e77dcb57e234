"""The filter of system calls, run by a small machine of the tests as the kernel would run it."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from enclaved.agent.guest.confinement import MACHINES, assemble, filter_steps
from enclaved.agent.guest.syscalls import (
    AUDIT_ARCH,
    CLONE,
    CLONE3,
    DENIED,
    MODES,
    NAMESPACE_FLAGS,
    NETLINK_FAMILY,
    OPENAT2,
    SOCKET,
    SOCKET_FAMILIES,
    X32_BIT,
)

ALLOWED, KILLED = 0x7FFF0000, 0x80000000
REFUSED = 0x00050000 | errno.EPERM
I386 = 0x40000003
LAST_KNOWN = 500


def outcome(machine: str, number: int, argument: int = 0, arch: int | None = None, third: int = 0) -> int:
    data = struct.pack("=IIQ6Q", number, AUDIT_ARCH[machine] if arch is None else arch, 0, argument, 0, third, 0, 0, 0)
    return run(assemble(filter_steps(machine)), data)


def run(program: bytes, data: bytes) -> int:
    steps = list(struct.iter_unpack("=HBBI", program))
    place = accumulator = 0
    while True:
        code, if_true, if_false, operand = steps[place]
        place += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x15:
                place += if_true if accumulator == operand else if_false
            case 0x35:
                place += if_true if accumulator >= operand else if_false
            case 0x45:
                place += if_true if accumulator & operand else if_false
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


def mode_outcome(machine: str, number: int, *arguments: int) -> int:
    """What becomes of a call in a sandbox that may write on the host."""
    data = struct.pack("=IIQ6Q", number, AUDIT_ARCH[machine], 0, *arguments, *[0] * (6 - len(arguments)))
    return run(assemble(filter_steps(machine, keeps_ids=True)), data)


@pytest.mark.parametrize("machine", MACHINES)
def test_just_the_listed_calls_are_refused(machine: str) -> None:
    column = MACHINES.index(machine)
    refused = {number for number in range(LAST_KNOWN) if outcome(machine, number, 1) == REFUSED}
    assert refused == {numbers[column] for numbers in DENIED.values() if numbers[column] is not None}
    others = {number for number in range(LAST_KNOWN) if outcome(machine, number, 1) not in (REFUSED, ALLOWED)}
    assert others == {CLONE3[column]}
    assert outcome(machine, CLONE3[column]) == 0x00050000 | errno.ENOSYS  # the C library takes clone then


@pytest.mark.parametrize("machine", MACHINES)
def test_just_four_families_of_sockets_can_be_had(machine: str) -> None:
    number = SOCKET[MACHINES.index(machine)]
    allowed = {family for family in range(64) if outcome(machine, number, family) == ALLOWED}
    assert allowed == {*SOCKET_FAMILIES, NETLINK_FAMILY}
    assert outcome(machine, number, 40) == REFUSED  # AF_VSOCK
    assert outcome(machine, number, 2 | 1 << 32) == ALLOWED  # the kernel does not see the upper half either


@pytest.mark.parametrize("machine", MACHINES)
def test_by_netlink_programs_can_look_at_interfaces_and_reach_nothing_else(machine: str) -> None:
    number = SOCKET[MACHINES.index(machine)]
    protocols = [protocol for protocol in range(64) if outcome(machine, number, 16, third=protocol) == ALLOWED]
    assert protocols == [0]
    assert all(outcome(machine, number, 2, third=protocol) == ALLOWED for protocol in (0, 6, 17))


@pytest.mark.parametrize("machine", MACHINES)
def test_processes_can_be_made_and_namespaces_cannot(machine: str) -> None:
    number = CLONE[MACHINES.index(machine)]
    thread, fork = 0x003D0F00, 0x01200011
    assert outcome(machine, number, thread) == outcome(machine, number, fork) == ALLOWED
    for bit in range(32):
        wanted = REFUSED if NAMESPACE_FLAGS >> bit & 1 else ALLOWED
        assert outcome(machine, number, 1 << bit) == wanted, hex(1 << bit)


@pytest.mark.parametrize("machine", MACHINES)
def test_where_programs_write_on_the_host_no_file_gets_its_owners_rights_for_others(machine: str) -> None:
    column = MACHINES.index(machine)
    makes, opens = 0o100, 0o2  # O_CREAT, O_RDWR
    for name, (numbers, mode, flags) in MODES.items():
        number = numbers[column]
        if number is None:
            continue
        for bits, wanted in ((0o777, ALLOWED), (0o1777, ALLOWED), (0o4755, REFUSED), (0o2755, REFUSED)):
            arguments = [0] * 6
            arguments[mode] = bits
            if flags is not None:
                arguments[flags] = opens
                assert mode_outcome(machine, number, *arguments) == ALLOWED, name
                arguments[flags] = opens | makes
            assert mode_outcome(machine, number, *arguments) == wanted, (name, oct(bits))
        assert outcome(machine, number, 0o6777) == ALLOWED
    assert mode_outcome(machine, OPENAT2[column]) == 0x00050000 | errno.ENOSYS
    # All else is as everywhere.
    for number in {*range(LAST_KNOWN)} - {OPENAT2[column]}:
        assert mode_outcome(machine, number, 1) == outcome(machine, number, 1)


def test_other_ways_to_call_the_kernel_end_the_program() -> None:
    assert outcome("x86_64", 1, arch=I386) == KILLED
    assert outcome("x86_64", X32_BIT | 1) == KILLED
    assert outcome("aarch64", 1, arch=AUDIT_ARCH["x86_64"]) == KILLED


def test_a_machine_without_a_table_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no table of system calls for a 'riscv64' machine"):
        filter_steps("riscv64")


def test_programs_have_room_for_the_filter() -> None:
    assert all(len(filter_steps(machine)) < 4096 for machine in MACHINES)  # the kernel's limit


@pytest.mark.parametrize(("column", "header"), [(0, "x86_64-linux-gnu/asm/unistd_64.h"), (1, "asm-generic/unistd.h")])
def test_the_numbers_are_those_of_the_kernels_headers_where_there_are_any(column: int, header: str) -> None:
    path = Path("/usr/include") / header
    known: dict[str, int] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) == 3 and words[0] == "#define" and words[1].startswith("__NR") and words[2].isdigit():
                known[words[1].removeprefix("__NR_").removeprefix("__NR3264_")] = int(words[2])
    modes = {name: numbers for name, (numbers, _, _) in MODES.items()}
    tables = {**DENIED, **modes, "openat2": OPENAT2, "socket": SOCKET, "clone": CLONE, "clone3": CLONE3}
    differing = {
        name: numbers for name, numbers in tables.items() if known.get(name, numbers[column]) != numbers[column]
    }
    assert differing == {}


PROGRAM = """
import ctypes, json, sys
sys.path.insert(0, sys.argv[1])
from enclaved.agent.guest.confinement import confine
from enclaved.agent.guest.syscalls import DENIED
confine()
library = ctypes.CDLL(None, use_errno=True)
answers = {}
for name, numbers in DENIED.items():
    number = numbers[int(sys.argv[2])]
    if number is not None:
        ctypes.set_errno(0)
        outcome = library.syscall(number, -1, -1, -1, -1, -1, -1)
        answers[name] = (outcome, ctypes.get_errno())
print(json.dumps(answers))
"""


def test_this_kernel_refuses_every_listed_call() -> None:
    root = Path(__file__).parents[4]
    column = MACHINES.index(os.uname().machine)
    program = [sys.executable, "-c", PROGRAM, str(root), str(column)]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    answers = {name: tuple(answer) for name, answer in json.loads(ran.stdout).items()}
    assert set(answers.values()) == {(-1, errno.EPERM)}
    assert len(answers) == sum(numbers[column] is not None for numbers in DENIED.values())


def test_without_the_c_library_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from enclaved.agent.guest import confinement

    monkeypatch.setattr(confinement, "libc", lambda: None)
    with pytest.raises(RuntimeError, match="no ctypes"):
        confinement.confine()


def test_what_the_kernel_refuses_is_told() -> None:
    from enclaved.agent.guest import confinement

    class Refusing:
        def prctl(self, *_: object) -> int:
            ctypes.set_errno(errno.EINVAL)
            return -1

    with pytest.raises(OSError, match="PR_SET_SECCOMP"):
        confinement.install_filter(Refusing(), "x86_64")
