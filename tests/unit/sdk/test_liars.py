"""Daemons that lie: every call ends in an error of ours, and none goes on for ever."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from ms_enclave._model import DockerSandboxConfig
from ms_enclave._model.life import SandboxFilter
from ms_enclave._transports import http_calls, retry
from ms_enclave._transports.base import SandboxChange, SandboxPlan, ToolCall
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave._transports.paging import PAGES_MAX
from ms_enclave._transports.retry import RECONNECT_VARIABLE
from ms_enclave.errors import EnclaveError, InternalError

PATIENCE_S = 60.0
EVENTS = 20
PACKAGE = "ms_enclave.v1"
SERVICES = ("Sandbox", "Execution", "Context", "Tool", "File", "Pool", "Image", "System")
METHODS: dict[str, MethodDescriptor] = {
    f"/{PACKAGE}.{name}Service/{method.name}": method
    for name in SERVICES
    for method in descriptor_pool.Default().FindServiceByName(f"{PACKAGE}.{name}Service").methods
}
Lie = Callable[[MethodDescriptor], Iterator[bytes]]


def absurd(message: Descriptor, depth: int = 0) -> Any:
    """A message in which every field says something that makes no sense."""
    made: Any = message_factory.GetMessageClass(message)()
    for field in message.fields:
        inner = field.message_type
        if field.is_repeated:
            entries = getattr(made, field.name)
            if inner is not None and inner.GetOptions().map_entry:
                continue
            if inner is None:
                entries.append(_nonsense(field))
            elif depth < 4:
                entries.append(absurd(inner, depth + 1))
        elif inner is None:
            setattr(made, field.name, _nonsense(field))
        elif depth < 4:
            getattr(made, field.name).CopyFrom(absurd(inner, depth + 1))
    return made


def _nonsense(field: FieldDescriptor) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return b"\xff" if field.type == FieldDescriptor.TYPE_BYTES else "[" * 50_000
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return float("nan") if field.number % 2 else float("inf")
        case FieldDescriptor.CPPTYPE_INT64 | FieldDescriptor.CPPTYPE_UINT64:
            return 2**62
        case FieldDescriptor.CPPTYPE_ENUM:
            return 99
        case _:
            return 2**31 - 1


def nonsense(method: MethodDescriptor) -> Iterator[bytes]:
    """What makes no sense, and then the end."""
    yield absurd(method.output_type).SerializeToString()


def garbage(method: MethodDescriptor) -> Iterator[bytes]:
    """What is no message."""
    yield b"\xff" * 50


def nothing(method: MethodDescriptor) -> Iterator[bytes]:
    """The end, at once and as if all were well."""
    return iter(())


def empty(method: MethodDescriptor) -> Iterator[bytes]:
    """A message that says nothing."""
    yield b""


def more(method: MethodDescriptor) -> Iterator[bytes]:
    """A page after which there is always the same one again."""
    made: Any = message_factory.GetMessageClass(method.output_type)()
    if "next_page_token" in method.output_type.fields_by_name:
        made.next_page_token = "again"
    yield made.SerializeToString()


class Liar(grpc.GenericRpcHandler):
    """Answers every method with a lie."""

    def __init__(self, lie: Lie) -> None:
        self.lie = lie

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Makes the handler of one call."""
        method = METHODS[handler_call_details.method]

        async def answer(requests: AsyncIterator[bytes], context: Any) -> None:
            async for _ in requests:
                break
            for data in self.lie(method):
                await context.write(data)

        return grpc.stream_stream_rpc_method_handler(answer)


@asynccontextmanager
async def lying(lie: Lie) -> AsyncIterator[GrpcTransport]:
    """A way to a daemon that lies."""
    folder = tempfile.mkdtemp(dir="/tmp")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Liar(lie),))
    server.add_insecure_port(f"unix:{folder}/s")
    await server.start()
    try:
        yield GrpcTransport(f"unix:{folder}/s")
    finally:
        await server.stop(0)
        shutil.rmtree(folder)


async def content(offset: int = 0) -> AsyncIterator[bytes]:
    yield b"x"


def given(parameter: inspect.Parameter) -> Any:
    """Something for a parameter, by its name or its type."""
    named = {
        "plan": SandboxPlan(sandbox_id="box", config=DockerSandboxConfig(), tools=None, labels={}),
        "call": ToolCall("box", "python_executor", {"code": "1"}),
        "labels": {},
        "offsets": {},
        "content": content,
        "wanted": SandboxFilter(),
        "change": SandboxChange(),
        "number": 9,
        "names": (),
    }
    if parameter.name in named:
        return named[parameter.name]
    if parameter.default is not parameter.empty:
        return parameter.default
    kind = str(parameter.annotation)
    return {"bool": True, "float": 1.0, "int": 1}.get(kind.partition(" ")[0], "x")


UNCALLED = ("claim", "update")
"""Methods of pools that take values of their own; the rest of what they do is as of others."""


def calls(transport: GrpcTransport) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every call of a transport, with its name."""
    parts = ("executions", "contexts", "lifecycle", "pools", "files")
    for prefix, part in (("", transport), *((f"{name}.", getattr(transport, name)) for name in parts)):
        for name, method in inspect.getmembers(part, inspect.ismethod):
            if name.startswith("_") or name == "close" or (prefix == "pools." and name in UNCALLED):
                continue
            parameters = inspect.signature(method).parameters.values()
            positional = [given(each) for each in parameters if each.kind is not each.KEYWORD_ONLY]
            keywords = {each.name: given(each) for each in parameters if each.kind is each.KEYWORD_ONLY}
            yield f"{prefix}{name}", lambda m=method, p=positional, k=keywords: m(*p, **k)


async def taken(call: Callable[[], Any]) -> str:
    """Makes a call and takes what comes; says what went wrong, if that was no error of ours."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            found = call()
            if inspect.isasyncgen(found):
                async with contextlib.aclosing(found):
                    for _ in range(EVENTS):  # who watches gets as many as come, and leaves when they like
                        await anext(found)
            elif inspect.isawaitable(found):
                await found
    except (EnclaveError, StopAsyncIteration):
        pass
    except TimeoutError:
        return "did not end"
    except Exception as error:  # noqa: BLE001 - which one it is, is what is looked for
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("lie", [nonsense, garbage, nothing, empty, more], ids=lambda lie: lie.__name__)
async def test_no_lie_of_a_daemon_makes_a_call_fail_oddly_or_go_on_for_ever(
    lie: Lie, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RECONNECT_VARIABLE, "0.1")
    monkeypatch.setattr(retry, "_REACHED_WAITS_S", (0.001, 0.001))
    async with lying(lie) as transport:
        made = dict(calls(transport))
        assert len(made) > 40
        outcomes = dict(zip(made, await asyncio.gather(*map(taken, made.values())), strict=True))
    assert {name: wrong for name, wrong in outcomes.items() if wrong} == {}


async def test_a_listing_whose_pages_never_end_is_given_up() -> None:
    numbers = iter(range(10 * PAGES_MAX))

    def another(method: MethodDescriptor) -> Iterator[bytes]:
        made: Any = message_factory.GetMessageClass(method.output_type)()
        made.next_page_token = str(next(numbers))
        yield made.SerializeToString()

    async with lying(another) as transport:
        with pytest.raises(InternalError, match="lists sandboxes without end"):
            await transport.list_sandboxes({})
    assert next(numbers) == PAGES_MAX + 1


async def test_a_file_of_which_a_part_is_garbage_is_not_taken_for_whole() -> None:
    def half(method: MethodDescriptor) -> Iterator[bytes]:
        made: Any = message_factory.GetMessageClass(method.output_type)(data=b"half of it")
        yield made.SerializeToString()
        yield b"\xff" * 50

    async with lying(half) as transport:
        for reading in (transport.read_file("box", "x"), transport.files.read("box", "x")):
            assert await anext(reading) == b"half of it"
            with pytest.raises(InternalError, match="no message of its contract"):
                await anext(reading)


async def test_an_answer_over_http_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_calls, "ANSWER_BYTES_MAX", 1_000_000)

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        try:
            while True:
                writer.write(b" " * 100_000)
                await writer.drain()
        except ConnectionError:
            writer.close()

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    calls_there = http_calls.HttpCalls(f"http://127.0.0.1:{port}")
    try:
        with pytest.raises(InternalError, match="more than 1000000 bytes"):
            await calls_there.call(http_calls.Request("GET", "/stats"), timeout_s=PATIENCE_S)
    finally:
        await calls_there.close()
        server.close()
        await server.wait_closed()
