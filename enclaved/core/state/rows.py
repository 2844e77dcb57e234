"""What is written down of a sandbox and of an execution, and how that becomes JSON and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from enclaved.model import Adjustment, Finished, OnAwaitingInput, SandboxSpec, SandboxState, TerminalSize
from enclaved.runtime.base import Counters, Image

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
    """``INITIALIZING``: it is being made. ``STOPPING``: it is being deleted."""
    state_reason: str
    created_at: datetime
    updated_at: datetime
    expires_monotonic_s: float
    """When its time to live ends, as CLOCK_MONOTONIC of the boot ``boot_id``: no step of the wall clock changes it."""
    boot_id: str
    pool_id: str = ""
    """The pool that it is a member of; empty: none."""


@dataclass(frozen=True, slots=True)
class ExecutionOptions:
    """How an execution was asked for."""

    timeout_s: float
    output_limit_bytes: int | None = None
    stdin: bool = False
    merge_stderr: bool = False
    idle_timeout_s: float = 0.0
    terminal: TerminalSize | None = None
    keep_last_bytes: int | None = None
    """``None``: output is kept until it is acknowledged."""
    detach: bool = False
    detach_grace_s: float = 60.0
    context: str | None = None
    on_awaiting_input: OnAwaitingInput = OnAwaitingInput.NOTICE


@dataclass(frozen=True, slots=True)
class ExecutionRow:
    """An execution as the next daemon must know it."""

    id: str
    sandbox_id: str
    tool: str
    options: ExecutionOptions
    created_at: datetime
    alone: bool = True
    """Whether no other execution ran in the sandbox at the same time."""
    counted: Counters | None = None
    """The control group's counters when it began."""
    cancelled_by: str = ""
    finished: Finished | None = None
    """How it ended; ``None``: it has not, as far as was known."""


def encode(value: object) -> str:
    """Makes JSON of dataclasses and what they consist of."""
    return json.dumps(value, default=_plain, separators=(",", ":"))


def shallow(value: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass by name."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return shallow(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} cannot be written down")


def decode(kind: Any, text: str) -> Any:
    """Makes a value of a type out of JSON. Raises `ValueError` if it is none. Fields that are missing get defaults."""
    return _adapter(kind).validate_json(text)


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
