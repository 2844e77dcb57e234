"""Clients that wear the daemon out: floods of calls, connections, messages and cancellations."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import Final

from ms_enclave.v1 import context_service_pb2 as context_pb
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import file_service_pb2 as file_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.doctor.act import Act
from enclaved.doctor.attacks.base import MIB, ActOf, Attack, Category, Evidence, Judge, Program
from enclaved.doctor.attacks.judges import REFUSED_CODES, all_of, answers, finds, memory_below, still_works

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_NOT_WORTH: Final = (*REFUSED_CODES, "OK", "UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "UNIMPLEMENTED")
_UNARY: Final = (
    "/ms_enclave.v1.SandboxService/CreateSandbox",
    "/ms_enclave.v1.SandboxService/GetSandbox",
    "/ms_enclave.v1.SandboxService/ListSandboxes",
    "/ms_enclave.v1.SandboxService/UpdateSandbox",
    "/ms_enclave.v1.ExecutionService/Run",
    "/ms_enclave.v1.ExecutionService/ListExecutions",
    "/ms_enclave.v1.ExecutionService/SignalExecution",
    "/ms_enclave.v1.FileService/StatFile",
    "/ms_enclave.v1.ContextService/OpenContext",
    "/ms_enclave.v1.ToolService/ListTools",
    "/ms_enclave.v1.SystemService/GetInfo",
)


async def _strangers(act: Act) -> Evidence:
    """Names a sandbox that is not there in every service."""
    name = f"nobody-{act.nonce}"
    stubs, spec = act.stubs, execution_pb.ExecutionSpec(sandbox_id=name, tool="python_executor", parameters_json="{}")
    await act.ask("get", stubs.sandboxes.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id=name)))
    await act.ask("stop", stubs.sandboxes.StopSandbox(sandbox_pb.StopSandboxRequest(sandbox_id=name)))
    await act.ask("run", stubs.executions.Run(execution_pb.RunRequest(spec=spec)))
    await act.ask("cancel", stubs.executions.CancelExecution(execution_pb.CancelExecutionRequest(execution_id=name)))
    await act.ask("stat", stubs.files.StatFile(file_pb.StatFileRequest(sandbox_id=name, path="x")))
    await act.ask("context", stubs.contexts.OpenContext(context_pb.OpenContextRequest(sandbox_id=name, name="x")))
    return act.evidence()


async def _large_message(act: Act) -> Evidence:
    for name, size in (("4 MiB and more", 5 * MIB), ("16 MiB", 16 * MIB)):
        spec = execution_pb.ExecutionSpec(
            sandbox_id=act.sandbox_id, tool="python_executor", parameters_json=json.dumps({"code": "#" * size})
        )
        await act.ask(name, act.stubs.executions.Run(execution_pb.RunRequest(spec=spec)))
    return act.evidence()


async def _large_headers(act: Act) -> Evidence:
    request = sandbox_pb.ListSandboxesRequest()
    for name, metadata in {
        "one of 40 kB": (("x-large", "a" * 40_000),),
        "3000 of them": tuple((f"x-{number}", "a" * 20) for number in range(3000)),
    }.items():
        await act.ask(name, act.stubs.sandboxes.ListSandboxes(request, metadata=metadata))
    return act.evidence()


async def _junk(act: Act) -> Evidence:
    """Sends bytes that are no HTTP/2 over many connections, then calls as everybody does."""
    chance = random.Random(act.nonce)  # noqa: S311 - bytes to throw, not keys
    for number in range(60):
        start = b"" if number % 2 else _PREFACE
        await act.raw(start + chance.randbytes(chance.randrange(1, 4000)), wait_s=0.0)
    await act.ask("a call afterwards", act.stubs.sandboxes.ListSandboxes(sandbox_pb.ListSandboxesRequest()))
    return act.evidence()


async def _idle_connections(act: Act) -> Evidence:
    """Opens connections that say nothing, or half of something, and keeps them open while somebody else calls."""
    async with contextlib.AsyncExitStack() as stack:
        opened = 0
        for number in range(200):
            with contextlib.suppress(OSError):
                await stack.enter_async_context(act.connection(_PREFACE[: number % len(_PREFACE)]))
                opened += 1
        await act.ask("a call beside them", act.stubs.sandboxes.ListSandboxes(sandbox_pb.ListSandboxesRequest()))
    return act.evidence(opened=opened)


async def _mutated(act: Act) -> Evidence:
    """Sends messages that are cut, mixed up or made of chance to unary methods."""
    chance = random.Random(act.nonce)  # noqa: S311 - as above
    seeds = [
        sandbox_pb.GetSandboxRequest(sandbox_id=act.sandbox_id).SerializeToString(),
        execution_pb.RunRequest(
            spec=execution_pb.ExecutionSpec(sandbox_id=act.sandbox_id, tool="x", parameters_json="{}")
        ).SerializeToString(),
        sandbox_pb.UpdateSandboxRequest(sandbox_id="x", ttl_s=-1).SerializeToString(),
    ]
    for number in range(600):
        data = bytearray(chance.choice(seeds) if number % 3 else chance.randbytes(chance.randrange(200)))
        for _ in range(chance.randrange(6)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        method = chance.choice(_UNARY)
        await act.ask(
            f"{method.rpartition('/')[2]} {number}", act.raw_call(method, bytes(data[: chance.randrange(300)]))
        )
    await act.ask("deep", act.raw_call(_UNARY[0], _nested(5000)))
    await act.ask("unknown method", act.raw_call("/ms_enclave.v1.SandboxService/Reboot", b""))
    return act.evidence()


def _nested(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        size, head = len(data), bytearray([0x12])
        while size > 127:
            head.append(size & 127 | 128)
            size >>= 7
        data = bytes([*head, size]) + data
        if len(data) > 60000:
            break
    return data


async def _cancel_storm(act: Act) -> Evidence:
    """Starts executions and leaves each at another moment."""
    chance = random.Random(act.nonce)  # noqa: S311 - as above

    async def leave(number: int) -> None:
        spec = execution_pb.ExecutionSpec(
            sandbox_id=act.sandbox_id,
            tool="shell_executor",
            parameters_json=json.dumps({"command": "sleep 20"}),
            detach_grace_s=0,
            timeout_s=20,
        )
        call = asyncio.ensure_future(act.attempted(act.stubs.executions.Run(execution_pb.RunRequest(spec=spec))))
        await asyncio.sleep(chance.random() * 0.5)
        call.cancel()
        await asyncio.wait((call,))

    for start in range(0, 120, 20):
        await asyncio.gather(*(leave(number) for number in range(start, start + 20)))
    return act.evidence(running=await act.executions_running())


async def _reset_storm(act: Act) -> Evidence:
    """Opens streams and resets them at once, thousands of times."""
    request = sandbox_pb.WatchSandboxesRequest()
    for _ in range(20):
        calls = [act.stubs.sandboxes.WatchSandboxes(request) for _ in range(100)]
        for call in calls:
            call.cancel()
        await asyncio.sleep(0)
    await act.ask("a call afterwards", act.stubs.sandboxes.ListSandboxes(sandbox_pb.ListSandboxesRequest()))
    return act.evidence()


async def _many_executions(act: Act) -> Evidence:
    """Starts more executions in one sandbox than it may have, and ends them."""

    async def one(number: int) -> None:
        spec = execution_pb.ExecutionSpec(
            sandbox_id=act.sandbox_id,
            tool="shell_executor",
            parameters_json=json.dumps({"command": "sleep 15"}),
            detach=True,
            timeout_s=15,
        )
        await act.ask(str(number), act.stubs.executions.Run(execution_pb.RunRequest(spec=spec)))

    await asyncio.gather(*(one(number) for number in range(150)))
    refused = sum(answer.code == "RESOURCE_EXHAUSTED" for answer in act.answers.values())
    await act.cancel_executions()
    return act.evidence(refused=refused)


async def _same_request(act: Act) -> Evidence:
    """Sends one request 12 times at once: there must be one sandbox."""
    request = sandbox_pb.CreateSandboxRequest(request_id=f"same-{act.nonce}", spec=act.small_spec())
    made = await asyncio.gather(*(act.create(str(number), request) for number in range(12)))
    return act.evidence(sandboxes=len({one.id for one in made if one is not None}))


async def _short_deadlines(act: Act) -> Evidence:
    """Creates with deadlines that end in the middle: what was made for nobody must go."""
    for number in range(12):
        with contextlib.suppress(TimeoutError):
            request = sandbox_pb.CreateSandboxRequest(spec=act.small_spec(), labels={"doctor": f"short-{act.nonce}"})
            await act.create(str(number), request, timeout_s=0.02 * (number + 1), keep_for_removal=True)
    return act.evidence(left=await act.sandboxes_with_label("doctor", f"short-{act.nonce}", patience_s=20))


async def _stdin_storm(act: Act) -> Evidence:
    """Sends input with gaps, repetitions and absurd offsets, and messages in the wrong order."""
    for name, steps in {
        "no start": [execution_pb.ExecuteRequest(end_of_input=execution_pb.EndOfInput())],
        "nothing": [execution_pb.ExecuteRequest()],
        "a gap": [act.start_message("cat"), _stdin(b"x", 1 << 40)],
        "negative": [act.start_message("cat"), _stdin(b"x", -1)],
        "signal 0": [act.start_message("cat"), execution_pb.ExecuteRequest(signal=execution_pb.Signal(signal=0))],
        "signal 999": [act.start_message("cat"), execution_pb.ExecuteRequest(signal=execution_pb.Signal(signal=999))],
        "two starts": [act.start_message("cat"), act.start_message("cat")],
        "acknowledges the future": [
            act.start_message("cat"),
            execution_pb.ExecuteRequest(
                acknowledge=execution_pb.Acknowledge(
                    offsets=[execution_pb.ChannelOffset(channel=execution_pb.CHANNEL_STDOUT, offset=1 << 50)]
                )
            ),
        ],
    }.items():
        await act.ask(name, act.stream(steps))
    return act.evidence()


def _stdin(data: bytes, offset: int) -> execution_pb.ExecuteRequest:
    return execution_pb.ExecuteRequest(stdin=execution_pb.Stdin(data=data, offset=offset))


async def _half_upload(act: Act) -> Evidence:
    """Begins uploads that never come to their end, and leaves."""
    for number in range(8):
        open_it = file_pb.WriteFileRequest(open=file_pb.OpenFile(sandbox_id=act.sandbox_id, path=f"half-{number}"))
        call = act.stubs.files.WriteFile()
        await act.attempted(call.write(open_it))
        await act.attempted(call.write(file_pb.WriteFileRequest(data=b"x" * 65536)))
        call.cancel()
    seen = await act.run(Program("time.sleep(1)\ntell('files', sorted(os.listdir('.')))\n"))
    return act.evidence(seen, files=act.told(seen).get("files", "nothing was told"))


def _attack(name: str, sentence: str, act: ActOf, judge: Judge, *, memory: bool = False, alone: bool = False) -> Attack:
    return Attack(
        f"clients.{name}",
        Category.CLIENTS,
        sentence,
        judge,
        act=act,
        alone=memory or alone,
        needs=frozenset({"memory"} if memory else ()),
    )


ATTACKS: Final = (
    _attack(
        "unknown-sandbox",
        "Names a sandbox that is not there, in every service.",
        _strangers,
        answers("NOT_FOUND", least=6),
    ),
    _attack(
        "large-messages",
        "Sends messages larger than 4 MiB.",
        _large_message,
        all_of(answers("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", least=2), memory_below(48 * MIB)),
        memory=True,
    ),
    _attack(
        "large-headers",
        "Sends headers of 40 kB, and thousands of them.",
        _large_headers,
        answers("RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL", least=2),
    ),
    _attack("junk", "Sends bytes that are no HTTP/2.", _junk, answers("OK")),
    _attack(
        "idle-connections",
        "Keeps 200 connections open that say nothing, or half of something.",
        _idle_connections,
        all_of(answers("OK"), finds("opened", bool, "some were opened"), memory_below(64 * MIB)),
        memory=True,
    ),
    _attack(
        "mutated-messages",
        "Sends messages that are cut, mixed up, deeply nested or made of chance.",
        _mutated,
        all_of(answers(*_NOT_WORTH, least=600), memory_below(48 * MIB)),
        memory=True,
    ),
    _attack(
        "cancel-storm",
        "Leaves 120 calls at random moments.",
        _cancel_storm,
        all_of(finds("running", lambda value: value == 0, "nothing runs on"), still_works()),
    ),
    _attack(
        "reset-storm",
        "Opens 2000 streams and resets each at once.",
        _reset_storm,
        all_of(answers("OK"), memory_below(64 * MIB)),
        memory=True,
    ),
    _attack(
        "many-executions",
        "Starts 150 executions in one sandbox.",
        _many_executions,
        all_of(
            finds("refused", bool, "those beyond the limit were refused"),
            answers("OK", "RESOURCE_EXHAUSTED", least=150),
            still_works(),
        ),
    ),
    _attack(
        "same-request",
        "Sends one request 12 times at once, to get 12 sandboxes.",
        _same_request,
        all_of(finds("sandboxes", lambda value: value == 1, "one sandbox"), answers("OK", least=12)),
    ),
    _attack(
        "short-deadlines",
        "Creates sandboxes and leaves before they are there.",
        _short_deadlines,
        finds("left", lambda value: value == 0, "nothing of it stayed"),
    ),
    _attack(
        "streams-out-of-order",
        "Sends messages of a stream in the wrong order, with absurd offsets and signals.",
        _stdin_storm,
        all_of(answers(*REFUSED_CODES, least=8), still_works()),
    ),
    _attack(
        "half-uploads",
        "Begins uploads and leaves in the middle.",
        _half_upload,
        finds("files", lambda value: value == [], "nothing half made is there"),
    ),
)
