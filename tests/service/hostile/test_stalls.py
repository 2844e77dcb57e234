"""Requests that are long to look at: they are refused by the number of what is in them, before anybody looks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import image_service_pb2 as image_pb

from enclaved import strict_json
from enclaved.errors import InvalidRequest
from enclaved.gateway.bodies import DockerSandboxConfig, SandboxType, sandbox_request
from enclaved.services._decoding import CONTENT_BYTES_MAX, ENTRIES_MAX, decoder
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.daemons import PATIENCE_S, Running, daemon, settings_in, short_directory
from tests.service.edge import fields
from tests.service.hostile.fuzzing import methods, path_of

MANY = 100_000
CROWD = 20_000
"""Entries of a list: more than there may be, in fewer bytes than there may be."""


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with short_directory() as folder, daemon(settings_in(folder)) as running:
        yield running


def lists_of(message: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """The way to every list and map of a message."""
    for field in message.fields:
        if field.is_repeated:
            yield (*path, field)
        elif field.message_type is not None:
            yield from lists_of(field.message_type, (*path, field))


def sized(data: bytes) -> bytes:
    """Bytes with their number before them, as in a protobuf."""
    size, head = len(data), bytearray()
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + data


def crowded(path: tuple[FieldDescriptor, ...]) -> bytes:
    """A message with many entries in one list: the smallest there are, and of a map with a key each."""
    *_, last = path
    tag = message_tag(last)
    if last.message_type is not None and last.message_type.GetOptions().map_entry:
        data = b"".join(tag + sized(b"\x0a" + sized(b"%x" % number)) for number in range(CROWD // 5))
    elif last.message_type is not None or last.type == FieldDescriptor.TYPE_STRING:
        data = (tag + b"\0") * CROWD
    else:
        data = tag + sized(b"\1" * CROWD)
    for field in reversed(path[:-1]):
        data = message_tag(field) + sized(data)
    return data


def message_tag(field: FieldDescriptor) -> bytes:
    number = field.number << 3 | 2
    return bytes([number]) if number < 128 else bytes([number & 127 | 128, number >> 7])


CROWDED = [(method, path) for method in methods() for path in lists_of(method.input_type)]


def test_every_list_of_every_request_is_bounded():
    assert len(CROWDED) > 20
    for method, path in CROWDED:
        with pytest.raises(InvalidRequest) as caught:
            decoder(method)(crowded(path))
        (violation,) = caught.value.violations
        assert violation.field == ".".join(field.name for field in path)
        assert "entries; at most" in violation.description


def test_as_many_entries_as_there_may_be_are_read():
    for method, path in CROWDED:
        message: Any = message_factory.GetMessageClass(method.input_type)()
        target = message
        for field in path[:-1]:
            target = getattr(target, field.name)
            target.SetInParent()
        assert decoder(method)(message.SerializeToString()) == message
    names = execution_pb.AttachRequest(offsets=[execution_pb.ChannelOffset(channel=1)] * ENTRIES_MAX)
    attach = next(method for method in methods() if method.name == "Attach")
    assert len(decoder(attach)(names.SerializeToString()).offsets) == ENTRIES_MAX


async def outcome(running: Running, method: MethodDescriptor, data: bytes) -> aio.AioRpcError:
    """Sends a message and nothing more; returns how the call ended."""
    call: Any = running.channel.stream_stream(path_of(method))(timeout=PATIENCE_S)
    try:
        await call.write(data)
        await call.done_writing()
        await call.read()
    except aio.AioRpcError as error:
        return error
    except asyncio.InvalidStateError:
        pass
    return aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )


async def test_calls_with_crowded_lists_or_too_many_bytes_are_refused_whatever_they_are(running: Running):
    for method, path in CROWDED:
        error = await outcome(running, method, crowded(path))
        assert fields(error) == [".".join(field.name for field in path)], method.name
    for method in methods():
        if method.name == "ServerReflectionInfo":  # which is not ours, and has no lists
            continue
        error = await outcome(running, method, b"\xfa\x7f" + sized(bytes(CONTENT_BYTES_MAX)))  # an unknown field
        assert fields(error) == ["request"], method.name


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [' + "[]," * MANY + "1]}",
        '{"a": [' + "{}," * MANY + "1]}",
        "{" + ",".join(f'"{number}": 1' for number in range(MANY)) + "}",
        '""' * MANY,
    ],
    ids=["lists", "objects", "keys", "strings"],
)
def test_a_json_text_of_too_many_parts_is_refused(text: str):
    with pytest.raises(strict_json.NotJson, match="has more than 20000 strings, commas and brackets"):
        strict_json.loads(text)


@pytest.mark.parametrize("text", ["a,[{" * MANY, '\\"' * MANY, "\\\\" * MANY, "\\n,\\u20ac{" * 40_000], ids=range(4))
def test_what_is_in_a_string_is_no_part_of_a_json_text(text: str):
    assert len(strict_json.loads(f'{{"code": "{text}"}}')["code"]) >= len(text) / 10


@pytest.mark.parametrize("text", ["a " * MANY, "''" * MANY, "\\\\" * MANY], ids=range(3))
def test_a_long_command_is_refused_without_being_split(text: str):
    wanted = sandbox_request(SandboxType.DOCKER, DockerSandboxConfig(command=text))
    assert wanted.command == (text,)


async def test_a_name_that_no_image_can_have_is_not_asked_for(monkeypatch: pytest.MonkeyPatch):
    class Unasked(SubprocessRuntime):
        async def resolve_image(self, image: str, *, may_pull: bool) -> Any:
            assert len(image) < 1000
            return await super().resolve_image(image, may_pull=may_pull)

    async with short_directory() as folder, daemon(settings_in(folder), runtime=Unasked()) as running:
        pull: Any = running.channel.unary_stream("/ms_enclave.v1.ImageService/PullImage")
        for image in ("a" * 200_000, "a b", "a\nb", "\u20ac"):
            call = pull(image_pb.PullImageRequest(image=image).SerializeToString(), timeout=PATIENCE_S)
            with pytest.raises(aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert fields(caught.value) == ["image"]
