"""Logs: one event per line, fields instead of sentences, as JSON or (on a terminal) as text.

Write ``log.info("sandbox created", extra={"image": image})``. Fields of the call at hand (``rpc``, ``sandbox_id``,
``execution_id``) are bound with `bind` and appear on every line of the same task. Line breaks and control bytes are
always escaped, so no value can forge a line. User code, environment and tokens are never logged; the text of an
unexpected exception may quote them, so it is logged at level ``debug`` only.
"""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal, TextIO

from enclaved.errors import EnclaveError

_VALUE_CHARS = 2000
_ID_CHARS = 128
_NOTHING: Mapping[str, str] = MappingProxyType({})
_BUILT_IN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_bound: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("enclaved_log_fields", default=_NOTHING)


def bind(**fields: str) -> None:
    """Adds fields to every later line of this task and of the tasks that it starts. Empty values are left out."""
    _bound.set({**_bound.get(), **{name: value[:_ID_CHARS] for name, value in fields.items() if value}})


def configure(level: str, form: Literal["json", "text"], stream: TextIO | None = None) -> None:
    """Sends the log of the whole process to ``stream`` (standard error) in the form that is wanted."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    set_level(level)


def set_level(level: str) -> None:
    """Changes the least level that is logged; from ``debug`` on, the texts of unexpected exceptions are shown."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    for handler in root.handlers:
        if isinstance(handler.formatter, JsonLines | TextLines):
            handler.formatter.shows_texts = level == "debug"
    for noisy in ("asyncio", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(max(root.level, logging.WARNING))


class JsonLines(logging.Formatter):
    """One JSON object per line: ``time``, ``level``, ``event``, ``logger``, then the fields."""

    def __init__(self, shows_texts: bool = False) -> None:
        super().__init__()
        self.shows_texts = shows_texts

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **_fields(record, self.shows_texts),
        }
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """One line for a person: time, level, event, then ``name=value`` for each field."""

    def __init__(self, shows_texts: bool = False) -> None:
        super().__init__()
        self.shows_texts = shows_texts

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record, self.shows_texts)
        frames = fields.pop("frames", [])
        words = [f"{_time(record):%H:%M:%S}", f"{record.levelname.lower():7}", _escaped(record.getMessage())]
        words += [f"{name}={_shown(value)}" for name, value in fields.items()]
        return "\n".join([" ".join(words), *(f"    {_escaped(frame)}" for frame in frames)])


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _fields(record: logging.LogRecord, shows_texts: bool) -> dict[str, Any]:
    fields: dict[str, Any] = dict(_bound.get())
    fields.update({name: _bounded(value) for name, value in vars(record).items() if name not in _BUILT_IN})
    if record.exc_info and record.exc_info[1] is not None:
        fields.update(_exception(record.exc_info[1], shows_texts))
    return fields


def _exception(error: BaseException, shows_texts: bool) -> dict[str, Any]:
    """Describes an exception by its class and frames, and by its text where that cannot quote a caller."""
    found: dict[str, Any] = {"exception": f"{type(error).__module__}.{type(error).__qualname__}"}
    if shows_texts or isinstance(error, EnclaveError | OSError):
        found["text"] = _bounded(str(error))
    found["frames"] = [
        f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
    ]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        found["cause"] = f"{type(cause).__module__}.{type(cause).__qualname__}"
    if isinstance(error, BaseExceptionGroup):
        found["leaves"] = [f"{type(leaf).__module__}.{type(leaf).__qualname__}" for leaf in error.exceptions]
    return found


def _bounded(value: object) -> object:
    if isinstance(value, str) and len(value) > _VALUE_CHARS:
        return f"{value[:_VALUE_CHARS]}… ({len(value)} characters)"
    return value


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    plain = isinstance(value, str) and text and text.isprintable() and not set(text) & set(' "=\\')
    return text if plain or not isinstance(value, str) else json.dumps(text)


def _escaped(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)[1:-1]
