"""Messages and values of the model with every field filled, and what of them a mapping leaves out."""

import dataclasses
import enum
import json
import random
import types
import typing
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from enclaved import model


def fill(message: Message, rng: random.Random) -> Message:
    """Fills every field of a message, nested ones too."""
    for field in message.DESCRIPTOR.fields:
        set_field(message, field, rng)
    return message


def set_field(message: Message, field: FieldDescriptor, rng: random.Random) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(message, field.name)[f"key_{rng.randrange(10**6)}"] = f"value_{rng.randrange(10**6)}"
    elif field.message_type is not None:
        target = getattr(message, field.name)
        fill(target.add() if field.is_repeated else target, rng)
        if not field.is_repeated:
            target.SetInParent()
    elif field.is_repeated:
        getattr(message, field.name).append(scalar(field, rng))
    else:
        setattr(message, field.name, scalar(field, rng))


def scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    if field.enum_type is not None:
        return rng.choice([value.number for value in field.enum_type.values if value.number])
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.random() + 1
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(8)
        case FieldDescriptor.CPPTYPE_STRING if field.name.endswith("_json"):
            return json.dumps({"key": rng.randrange(10**6)})
        case FieldDescriptor.CPPTYPE_STRING:
            return f"text{rng.randrange(10**6)}"
        case _:
            return rng.randrange(1, 1000)


def filled(hint: Any, rng: random.Random) -> Any:
    """Makes a value of the model with nothing left at a default."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return filled(next(argument for argument in arguments if argument is not type(None)), rng)
    if origin is tuple:
        return (filled(arguments[0], rng),)
    if origin is not None and issubclass(origin, Mapping):
        key = rng.choice(list(model.CHANNEL_NAMES)) if arguments[0] is int else filled(arguments[0], rng)
        return {key: filled(arguments[1], rng)}
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        values = {field.name: filled(hints[field.name], rng) for field in dataclasses.fields(hint)}
        if hints.get("channel") is int:  # of output
            values["channel"] = rng.choice(list(model.CHANNEL_NAMES))
        return hint(**values)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return rng.choice(list(hint))
    makers = {
        bool: lambda: True,
        int: lambda: rng.randrange(1, 1000),
        float: lambda: rng.random() + 1,
        str: lambda: f"text{rng.randrange(10**6)}",
        bytes: lambda: rng.randbytes(8),
        datetime: lambda: datetime.fromtimestamp(rng.randrange(10**9), UTC),
        Any: lambda: f"any{rng.randrange(10**6)}",
    }
    return makers[hint]()


def unset_fields(message: Message, path: str = "") -> set[str]:
    """Names every field, nested ones too, that a message leaves unset."""
    found: set[str] = set()
    for field in message.DESCRIPTOR.fields:
        name = f"{path}{field.name}"
        value = getattr(message, field.name)
        if field.message_type is None or field.message_type is Timestamp.DESCRIPTOR:
            present = message.HasField(field.name) if field.has_presence else bool(value)
            found |= set() if present else {name}
        elif field.is_repeated:
            if not value:
                found.add(name)
            elif not field.message_type.GetOptions().map_entry:
                found |= unset_fields(value[0], f"{name}.")
        elif not message.HasField(field.name):
            found.add(name)
        else:
            found |= unset_fields(value, f"{name}.")
    return found


def ignored_fields(value: Any, shown: Any) -> set[str]:
    """Names every field of a dataclass whose change does not change what is shown of it."""
    found: set[str] = set()
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        for seed in range(20):
            other = filled(hints[field.name], random.Random(seed))
            if other != getattr(value, field.name):
                break
        if isinstance(other, bool):
            other = not getattr(value, field.name)
        if shown(dataclasses.replace(value, **{field.name: other})) == shown(value):
            found.add(field.name)
    return found
