"""What ids, names and labels look like, whatever they name. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from enclaved.core.spec_fields import has_surrogates, shown
from enclaved.errors import FieldViolation, InvalidRequest

LABELS_MAX: Final = 64
LABEL_VALUE_MAX: Final = 256

# Violations travel in the call's trailing metadata, which clients limit to 8 KiB.
VIOLATIONS_MAX: Final = 10

_SANDBOX_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_EXECUTION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_CONTEXT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LABEL_KEY = re.compile(r"[A-Za-z0-9._/-]{1,63}")


def check_id(sandbox_id: str, field: str = "sandbox_id") -> None:
    """Refuses what is no id of a sandbox, before anything is made of it. Raises `InvalidRequest`."""
    if not _SANDBOX_ID.fullmatch(sandbox_id):
        raise InvalidRequest.of(field, f"{shown(sandbox_id)} is no id: it must match ^{_SANDBOX_ID.pattern}$")


def check_execution_id(execution_id: str, field: str = "execution_id") -> None:
    """Refuses what is no id of an execution, before anything is made of it. Raises `InvalidRequest`."""
    if not _EXECUTION_ID.fullmatch(execution_id):
        raise InvalidRequest.of(field, f"{shown(execution_id)} is no id: it must match ^{_EXECUTION_ID.pattern}$")


def check_request_id(request_id: str, field: str = "request_id") -> None:
    """Refuses what is no id of a request. Raises `InvalidRequest`."""
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidRequest.of(field, f"{shown(request_id)} is no id: it must match ^{_REQUEST_ID.pattern}$")


def check_context_name(name: str, field: str = "name") -> None:
    """Refuses what is no name of a context, before anything is made of it. Raises `InvalidRequest`."""
    if not _CONTEXT_NAME.fullmatch(name):
        raise InvalidRequest.of(field, f"{shown(name)} is no name: it must match ^{_CONTEXT_NAME.pattern}$")


def check_labels(labels: Mapping[str, str], field: str = "labels") -> None:
    """Refuses labels that are too many, too long, or in a namespace of the daemon. Raises `InvalidRequest`."""
    violations = [FieldViolation(field, text) for text in _label_problems(labels)]
    if violations:
        raise InvalidRequest(*violations[:VIOLATIONS_MAX])


def _label_problems(labels: Mapping[str, str]) -> Iterator[str]:
    if len(labels) > LABELS_MAX:
        yield f"has {len(labels)} entries; at most {LABELS_MAX} are possible"
        return
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            yield f"{shown(key)} is no key: it must match ^{_LABEL_KEY.pattern}$"
        elif key.lower().startswith("enclaved."):
            yield f"{shown(key)}: keys that start with 'enclaved.' belong to the daemon; choose another prefix"
        elif len(value) > LABEL_VALUE_MAX or "\0" in value or has_surrogates(value):
            yield f"the value of {shown(key)} is longer than {LABEL_VALUE_MAX} characters, or not text"
