"""Messages made at random from the descriptors of the contract: some nearly right, some only bytes."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from ms_enclave.v1 import (
    context_service_pb2,
    execution_service_pb2,
    file_service_pb2,
    image_service_pb2,
    pool_service_pb2,
    sandbox_service_pb2,
    system_service_pb2,
    tool_service_pb2,
)

MODULES: Final = (
    context_service_pb2,
    execution_service_pb2,
    file_service_pb2,
    image_service_pb2,
    pool_service_pb2,
    sandbox_service_pb2,
    system_service_pb2,
    tool_service_pb2,
)

WORDS: Final = (
    *(
        "",
        "box",
        "run",
        "python_executor",
        "shell_executor",
        "file_operation",
        "nope",
        "default",
        "/sandbox/x",
        ".",
        "..",
    ),
    *(
        "../" * 30,
        "a\0b",
        "a\r\nb: c",
        "\u202e",
        "\ud7ff",
        "x" * 300,
        "x" * 70_000,
        "{}",
        "[]",
        "null",
        "NaN",
        "[" * 5000,
    ),
    *('{"code": "1"}', '{"command": "true"}', '{"code": "\\ud800"}', '{"a": 1, "a": 2}', "1e999", "%s%n", "${x}", "-1"),
    *("python:3.11-slim", "127.0.0.1:1/x", "SIGKILL", "SIGKILL\n", "/proc/self/mem", "/", "~root", "a/b", "sha256:0"),
)
NUMBERS: Final = (0, 1, -1, 2, 255, 65_536, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, -(2**63), 512 * 2**20)
DOUBLES: Final = (0.0, -1.0, 0.5, 1.0, 1e-300, 1e300, math.inf, -math.inf, math.nan)
DEPTH_MOST: Final = 12


def methods() -> Iterator[MethodDescriptor]:
    """Yields every method of the contract."""
    for module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods
    for name in ("grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"):
        yield from descriptor_pool.Default().FindServiceByName(name).methods


def path_of(method: MethodDescriptor) -> str:
    """The path under which a method is called."""
    return f"/{method.containing_service.full_name}/{method.name}"


def message_for(method: MethodDescriptor, rng: random.Random) -> bytes:
    """Makes a message for a method: nearly right, damaged, of another method, or no message at all."""
    kind = rng.randrange(10)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return nested(rng)
    message = message_factory.GetMessageClass(method.input_type)()
    put(message, rng)
    data = message.SerializeToString()
    return data if kind < 7 else mutated(data, rng)


def put(message: Message, rng: random.Random, depth: int = 0) -> None:
    """Sets some fields."""
    for field in message.DESCRIPTOR.fields:
        if depth < DEPTH_MOST and rng.random() < 0.5:
            _put_field(message, field, rng, depth)


def _put_field(message: Message, field: FieldDescriptor, rng: random.Random, depth: int) -> None:
    target: Any = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for _ in range(rng.randrange(3)):
            _put_entry(target, field.message_type, rng, depth)
    elif field.message_type is not None:
        made = target.add() if field.is_repeated else target
        made.SetInParent()
        put(made, rng, depth + 1)
    elif field.is_repeated:
        target.extend(_scalar(field, rng) for _ in range(rng.choice((0, 1, 2, 300))))
    else:
        setattr(message, field.name, _scalar(field, rng))


def _put_entry(target: Any, entry: Any, rng: random.Random, depth: int) -> None:
    key, value = _scalar(entry.fields_by_name["key"], rng), entry.fields_by_name["value"]
    if value.message_type is not None:
        put(target[key], rng, depth + 1)
    else:
        target[key] = _scalar(value, rng)


def _scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    if field.enum_type is not None:
        return rng.choice([*(value.number for value in field.enum_type.values), 77])
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return rng.choice(DOUBLES)
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 1, 100, 70_000)))
        case FieldDescriptor.CPPTYPE_STRING:
            return rng.choice(WORDS)
        case FieldDescriptor.CPPTYPE_INT32:
            return rng.choice([number for number in NUMBERS if -(2**31) <= number < 2**31])
        case FieldDescriptor.CPPTYPE_UINT32:
            return rng.choice([number for number in NUMBERS if 0 <= number < 2**32])
        case FieldDescriptor.CPPTYPE_UINT64:
            return rng.choice([number for number in NUMBERS if number >= 0])
        case _:
            return rng.choice(NUMBERS)


def nested(rng: random.Random) -> bytes:
    """A message in a message in a message, deeper than any parser goes."""
    data, tag = b"", bytes((rng.randrange(1, 16) << 3 | 2,))
    for _ in range(rng.choice((50, 120, 2000))):
        data = tag + _varint(len(data)) + data
    return data


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 128:
        found.append(number % 128 + 128)
        number //= 128
    return bytes((*found, number))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, doubles or inserts bytes."""
    found = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(4):
            case 0 if at < len(found):
                found[at] = rng.randrange(256)
            case 1:
                del found[at : at + rng.randrange(1, 8)]
            case 2:
                found[at:at] = rng.randbytes(rng.randrange(1, 8))
            case _:
                found[at:at] = found[at : at + 16]
    return bytes(found)
