"""Clients that ask for what nobody gets: privilege, the host's files, no limits, names with a second meaning."""

from __future__ import annotations

import socket
from typing import Any, Final

from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import image_service_pb2 as image_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.doctor.act import Act
from enclaved.doctor.attacks.base import ActOf, Attack, Category, Evidence, Judge
from enclaved.doctor.attacks.judges import all_of, answers, finds

_NAN, _INFINITE = float("nan"), float("inf")
_SECRET_PLACES: Final = (
    *("/", "/etc", "/proc", "/sys", "/dev", "/run", "/boot", "/var/run/docker.sock", "/run/docker.sock"),
    *("/var/lib/docker", "/proc/self/root", "/tmp/../etc", "/etc/../", "//", "relative", "/etc\0"),
)


async def _create_each(act: Act, specs: dict[str, sandbox_pb.SandboxSpec]) -> Evidence:
    """Asks for a sandbox of each kind. One that is granted is removed again."""
    for name, spec in specs.items():
        await act.create(name, sandbox_pb.CreateSandboxRequest(spec=spec))
    return act.evidence()


def _spec(**fields: Any) -> sandbox_pb.SandboxSpec:
    return sandbox_pb.SandboxSpec(**fields)


async def _privilege(act: Act) -> Evidence:
    asked = {
        "privileged": _spec(privileged=True),
        "privileged with a network": _spec(privileged=True, network_enabled=True),
        "a runtime of its own": _spec(runtime_class="../../bin/sh"),
        "an unknown runtime": _spec(runtime_class="kata-of-nobody"),
        "another platform": _spec(platform="plan9/mips"),
    }
    return await _create_each(act, asked)


async def _mounts(act: Act) -> Evidence:
    asked = {
        f"{place!r} {mode}": _spec(volumes=[sandbox_pb.Volume(host_path=place, bind="/data", mode=mode)])
        for place in _SECRET_PLACES
        for mode in ("ro", "rw")
    }
    target = sandbox_pb.Volume(host_path="/tmp", bind="/etc", mode="ro")
    return await _create_each(act, {**asked, "over /etc": _spec(volumes=[target])})


async def _networks(act: Act) -> Evidence:
    names = ("host", "container:x", "default", "ns:/proc/1/ns/net", "none\0host", "../host", f"container:{'0' * 64}")
    return await _create_each(act, {name: _spec(network=name) for name in names})


async def _ports(act: Act) -> Evidence:
    asked = {}
    for name, port, address, number in (
        ("all addresses", "80/tcp", "0.0.0.0", 0),  # noqa: S104 - asked for, and to be refused
        ("no number", "http/tcp", "127.0.0.1", 0),
        ("too large", "70000/tcp", "127.0.0.1", 70000),
        ("without a network", "8080/tcp", "127.0.0.1", 0),
    ):
        mapping = sandbox_pb.PortMapping(container_port=port, host_address=address, host_port=number)
        asked[name] = _spec(ports=[mapping], network="none")
    return await _create_each(act, asked)


async def _limits(act: Act) -> Evidence:
    asked = {
        "memory -1": _spec(memory_limit_bytes=-1),
        "memory 0": _spec(memory_limit_bytes=0),
        "memory 2**62": _spec(memory_limit_bytes=2**62),
        "cpu 0": _spec(cpu_limit=0),
        "cpu -1": _spec(cpu_limit=-1),
        "cpu nan": _spec(cpu_limit=_NAN),
        "cpu infinite": _spec(cpu_limit=_INFINITE),
        "processes 0": _spec(pids_limit=0),
        "processes -1": _spec(pids_limit=-1),
        "processes 2**31-1": _spec(pids_limit=2**31 - 1),
        "work -1": _spec(working_dir_size_bytes=-1),
        "work 2**60": _spec(working_dir_size_bytes=2**60),
        "tmp 0": _spec(tmp_size_bytes=0),
        "ttl nan": _spec(ttl_s=_NAN),
        "ttl -1": _spec(ttl_s=-1),
        "ttl infinite": _spec(ttl_s=_INFINITE),
        "timeout nan": _spec(timeout_s=_NAN),
        "timeout -1": _spec(timeout_s=-1),
    }
    return await _create_each(act, asked)


async def _raised_limits(act: Act) -> Evidence:
    for name, (field, value) in {
        "memory": ("memory_limit_bytes", 2**62),
        "no memory limit": ("memory_limit_bytes", -1),
        "cpu": ("cpu_limit", _INFINITE),
        "processes": ("pids_limit", 2**31 - 1),
        "ttl": ("ttl_s", _INFINITE),
    }.items():
        request = sandbox_pb.UpdateSandboxRequest(sandbox_id=act.sandbox_id)
        setattr(request, field, value)
        await act.ask(name, act.stubs.sandboxes.UpdateSandbox(request))
    return act.evidence()


async def _timeouts(act: Act) -> Evidence:
    for name, (field, value) in {
        "timeout -1": ("timeout_s", -1.0),
        "timeout nan": ("timeout_s", _NAN),
        "timeout infinite": ("timeout_s", _INFINITE),
        "timeout 1e18": ("timeout_s", 1e18),
        "idle nan": ("idle_timeout_s", _NAN),
        "grace -1": ("detach_grace_s", -1.0),
    }.items():
        spec = execution_pb.ExecutionSpec(
            sandbox_id=act.sandbox_id, tool="python_executor", parameters_json='{"code": "1"}'
        )
        setattr(spec, field, value)
        await act.ask(name, act.stubs.executions.Run(execution_pb.RunRequest(spec=spec)))
    return act.evidence()


async def _ids(act: Act) -> Evidence:
    for name, text in {
        "slashes": "../../containers/json",
        "line breaks": "a\r\nHost: x",
        "nul": "a\0b",
        "digits of others": "\u0661\u0662",
        "capitals": "ABC",
        "empty": "",
        "a query": "a?all=1",
        "long": "a" * 1_000_000,
        "dashes": "--all",
    }.items():
        await act.ask(f"get {name}", act.stubs.sandboxes.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id=text)))
        delete = sandbox_pb.DeleteSandboxRequest(sandbox_id=text)
        await act.ask(f"delete {name}", act.stubs.sandboxes.DeleteSandbox(delete))
        if text:
            await act.create(f"create {name}", sandbox_pb.CreateSandboxRequest(sandbox_id=text))
        wait = execution_pb.GetExecutionRequest(execution_id=text)
        await act.ask(f"execution {name}", act.stubs.executions.GetExecution(wait))
    return act.evidence()


async def _environment(act: Act) -> Evidence:
    asked = {
        "a second sign": {"A=B": "x"},
        "nul in a name": {"A\0B": "x"},
        "nul in a value": {"A": "x\0y"},
        "line break in a name": {"A\nB": "x"},
        "loader": {"LD_PRELOAD": "/tmp/x.so"},
        "library path": {"LD_LIBRARY_PATH": "/tmp"},
        "interpreter": {"PYTHONSTARTUP": "/tmp/x.py"},
        "library of C": {"GLIBC_TUNABLES": "x"},
        "shell": {"BASH_ENV": "/tmp/x"},
        "a large value": {"A": "x" * 1_000_000},
        "many": {f"A{number}": "x" for number in range(1000)},
        "an empty name": {"": "x"},
    }
    return await _create_each(act, {name: _spec(env_vars=variables) for name, variables in asked.items()})


async def _labels(act: Act) -> Evidence:
    for name, labels in {
        "of the daemon": {"enclaved.id": "other"},
        "of the daemon, large": {"Enclaved.Owner": "other"},
        "signature": {"enclaved.hmac": "0" * 64},
        "line break": {"a\nb": "x"},
        "long": {"a" * 300: "x"},
        "many": {f"a{number}": "x" for number in range(500)},
        "nul": {"a": "x\0"},
    }.items():
        await act.create(name, sandbox_pb.CreateSandboxRequest(labels=labels))
    return act.evidence()


async def _directories(act: Act) -> Evidence:
    places = (
        "/",
        "/etc",
        "/proc",
        "/proc/self",
        "/dev",
        "/sys",
        "/usr/bin",
        "/lib",
        "relative",
        "/a/../etc",
        "/run/enclave",
    )
    odd = ("/a\0b", "/a,exec,uid=0", "/a\nb", "/" + "x" * 5000)
    return await _create_each(act, {place[:40]: _spec(working_dir=place) for place in (*places, *odd)})


async def _images(act: Act) -> Evidence:
    """Names images of a registry at a loopback address, at which a listener waits, and others that are no names."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.setblocking(False)
        names = (f"127.0.0.1:{port}/x:1", "../../etc", "-rm", "a b", "http://127.0.0.1/x", "x@sha256:" + "0" * 63)
        for name in names:
            await act.create(name, sandbox_pb.CreateSandboxRequest(spec=_spec(image=name)))

            async def pulling(image: str) -> None:
                async for _ in act.stubs.images.PullImage(image_pb.PullImageRequest(image=image)):
                    pass

            await act.ask(f"pull {name}", pulling(name))
        try:
            listener.accept()[0].close()
            reached = True
        except BlockingIOError:
            reached = False
    return act.evidence(reached=reached)


async def _extras(act: Act) -> Evidence:
    """Adds fields that the contract does not have, as they stand in the engine's own interface."""
    for name, number in (("a high field", 5000), ("another", 201)):
        spec = _spec().SerializeToString() + _unknown_field(number, b'{"HostConfig": {"Privileged": true}}')
        made = await act.create(name, sandbox_pb.CreateSandboxRequest(spec=sandbox_pb.SandboxSpec.FromString(spec)))
        if made is not None and (made.waived or made.spec.privileged):
            act.facts["waived"] = True
    found = await act.host_config()
    if found is not None:
        act.facts["privileged"] = bool(found.get("Privileged"))
    act.facts.setdefault("waived", False)
    return act.evidence()


def _unknown_field(number: int, data: bytes) -> bytes:
    key, head = (number << 3) | 2, bytearray()
    while key > 127:
        head.append(key & 127 | 128)
        key >>= 7
    return bytes([*head, key, len(data)]) + data


def _attack(name: str, sentence: str, act: ActOf, judge: Judge | None = None) -> Attack:
    return Attack(f"clients.{name}", Category.CLIENTS, sentence, judge or answers(least=4), act=act)


ATTACKS: Final = (
    _attack("privilege", "Asks for privilege, another runtime and another platform.", _privilege),
    _attack("mounts", "Asks for the host's root, its engine's socket and what lies in its system.", _mounts),
    _attack("networks", "Asks for the host's network and that of other containers.", _networks),
    _attack("ports", "Asks for ports on all addresses, and for some that are none.", _ports),
    _attack("limits", "Asks for sandboxes whose limits mean no limit.", _limits),
    _attack("raised-limits", "Raises the limits of a sandbox that runs.", _raised_limits),
    _attack("timeouts", "Asks for executions that never end.", _timeouts),
    _attack("ids", "Names sandboxes and executions by text that would be another address at the engine.", _ids),
    _attack("environment", "Sets variables that steer loaders and interpreters.", _environment),
    _attack("labels", "Sets labels by which the daemon knows what is its own.", _labels),
    _attack("working-directories", "Has its working directory hide the system.", _directories),
    _attack(
        "images",
        "Names images at a loopback address, to have the engine connect there.",
        _images,
        all_of(
            finds("reached", lambda value: value is False, "nobody connected"),
            answers(
                *("INVALID_ARGUMENT", "PERMISSION_DENIED", "NOT_FOUND", "FAILED_PRECONDITION", "UNAVAILABLE"), least=6
            ),
        ),
    ),
    _attack(
        "unknown-fields",
        "Sends fields that the contract does not have, with an engine's names for privilege.",
        _extras,
        all_of(
            finds("waived", lambda value: value is False, "nothing was waived"),
            answers("OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", least=2),
        ),
    ),
)
