"""Turns the bytes of a request into its message, within bounds on its size and on the entries of its lists.

Four megabytes can say two million empty entries, and to look at them one by one would hold up everybody for seconds. So
how many there are is looked at first, which costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor

from enclaved.core.files import NAMES_MAX
from enclaved.errors import InvalidRequest

REQUEST_BYTES_MAX: Final = 256 * 1024
"""Of a request that carries no program, no content of files and no list of their names."""
CONTENT_BYTES_MAX: Final = 2560 * 1024
"""Of one that does."""
ENTRIES_MAX: Final = 1024
"""Of a list or map in a request. What there may be of each kind is less, and said by whoever reads it."""

_LARGE: Final = frozenset({"Run", "RunInPool", "Execute", "WriteFile", "WriteArchive", "ReadArchive"})
_ENTRIES: Final = MappingProxyType({"ms_enclave.v1.ReadArchiveRequest.names": NAMES_MAX})


class _Lists(NamedTuple):
    """Where a message has lists: its own, each with how long it may be, and those of messages in it."""

    own: Sequence[tuple[str, int]]
    below: Sequence[tuple[str, _Lists]]


def decoder(method: MethodDescriptor) -> Callable[[bytes], Any]:
    """Makes what decodes the requests of a method.

    It raises `InvalidRequest` for too many bytes or entries, and ``DecodeError`` for what is no such message.
    """
    decode: Callable[[bytes], Any] = message_factory.GetMessageClass(method.input_type).FromString
    lists = _lists_of(method.input_type)
    most_bytes = CONTENT_BYTES_MAX if method.name in _LARGE else REQUEST_BYTES_MAX

    def decoded(data: bytes) -> Any:
        if len(data) > most_bytes:
            text = f"has {len(data)} bytes, and at most {most_bytes} are possible for {method.name}"
            raise InvalidRequest.of("request", f"{text}; put large content into files")
        message = decode(data)
        _check(message, lists, "")
        return message

    return decoded


def _lists_of(message: Descriptor, seen: tuple[Descriptor, ...] = ()) -> _Lists:
    own: list[tuple[str, int]] = []
    below: list[tuple[str, _Lists]] = []
    for field in message.fields:
        inner = field.message_type
        if field.is_repeated:
            own.append((field.name, _ENTRIES.get(field.full_name, ENTRIES_MAX)))
        elif inner is not None and inner not in seen:
            found = _lists_of(inner, (*seen, message))
            if found.own or found.below:
                below.append((field.name, found))
    return _Lists(tuple(own), tuple(below))


def _check(message: Any, lists: _Lists, path: str) -> None:
    for name, most in lists.own:
        count = len(getattr(message, name))
        if count > most:
            raise InvalidRequest.of(f"{path}{name}", f"has {count} entries; at most {most} are possible")
    for name, inner in lists.below:
        if message.HasField(name):
            _check(getattr(message, name), inner, f"{path}{name}.")
