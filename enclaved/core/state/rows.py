"""What is written down of a sandbox, and how rows become JSON and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from enclaved.model import DEFAULT_TENANT, Adjustment, PortMapping, SandboxSpec, SandboxState, StateChange
from enclaved.runtime.base import Image

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, slots=True)
class SandboxRow:
    """A sandbox as the next daemon must know it."""

    id: str
    number: int
    """Order of creation, for pages."""
    spec: SandboxSpec
    adjustments: tuple[Adjustment, ...]
    labels: Mapping[str, str]
    uid: int
    directory: str
    """Its directory on the host, as a path."""
    container_id: str | None
    """``None``: none was made, or nobody could write down its id."""
    image: Image | None
    env: Mapping[str, str]
    state: SandboxState
    """``INITIALIZING``: it is being made, or started again if it was stopped before (`history`)."""
    state_reason: str
    created_at: datetime
    updated_at: datetime
    expires_monotonic_s: float
    """When its time to live ends, as CLOCK_MONOTONIC of the boot ``boot_id``: no step of the wall clock changes it."""
    boot_id: str
    gid: int = 0
    """The group of its programs; 0: the same number as ``uid``."""
    pool_id: str = ""
    """The pool that it is a member of; empty: none."""
    tenant: str = DEFAULT_TENANT
    owner: str = ""
    """The name of the identity that made it."""
    waived: tuple[str, ...] = ()
    """Protections that a grant took from it."""
    command_execution_id: str = ""
    """The execution of the command that was started with it; empty: none."""
    command_due: bool = False
    """Whether it has not begun yet."""
    published_ports: tuple[PortMapping, ...] = ()
    request_id: str = ""
    """The caller's id of the request that made it; empty: none."""
    request_digest: str = ""
    """What that request asked for."""
    revision: int = 0
    """Of its last change."""
    used_monotonic_s: float = 0.0
    """When it was last used, on the clock of ``expires_monotonic_s``; 0: not known."""
    limits_due: bool = False
    """Whether the engine may not have heard of its limits yet."""
    history: tuple[StateChange, ...] = ()
    """Its last changes of state, oldest first."""


def encode(value: object) -> str:
    """Makes JSON of dataclasses, and of mappings, sequences, sets and moments in them: the same of what is equal."""
    return json.dumps(value, default=_plain, separators=(",", ":"), sort_keys=True)


def shallow(value: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass by name."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def differing(value: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass that have other values than they would have by themselves."""
    return {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != _default(field)
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return shallow(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"a {type(value).__name__} cannot be written down")


def encode_as(kind: Any, value: object, *, leave_out: Collection[str] = ()) -> str:
    """Makes JSON of a value of a type, several times faster than `encode`: for what is written with every call.

    Fields that have their default are left out: there may be very many rows, and each is to fit on its page.
    """
    return _adapter(kind).dump_json(value, exclude_defaults=True, exclude=set(leave_out) or None).decode()


def decode(kind: Any, text: str) -> Any:
    """Makes a value of a type out of JSON. Raises `ValueError` if it is none. Fields that are missing get defaults."""
    return _adapter(kind).validate_json(text)


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
