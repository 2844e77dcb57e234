"""What an interpreter remembers of calls."""

from __future__ import annotations

import collections

import pytest

from enclaved.agent.guest.interpreter import Interpreter
from enclaved.agent.guest.limits import SOURCES_BYTES, SOURCES_KEPT


class Linecache:
    """What an interpreter uses of ``linecache``."""

    def __init__(self) -> None:
        self.cache: dict[str, object] = {}


@pytest.fixture
def interpreter() -> Interpreter:
    """One that runs nothing: to make it as a program makes it would change this process."""
    made = Interpreter.__new__(Interpreter)
    made.linecache, made.sources, made.source_bytes = Linecache(), collections.deque(), 0
    return made


def test_twenty_thousand_short_calls_keep_a_bounded_number_of_sources(interpreter: Interpreter) -> None:
    for number in range(20_000):
        interpreter.remember_source(f"<call {number}>", "pass")
    latest = [f"<call {number}>" for number in range(20_000 - SOURCES_KEPT, 20_000)]
    assert list(interpreter.linecache.cache) == latest
    assert [name for name, _ in interpreter.sources] == latest
    assert interpreter.source_bytes == 4 * SOURCES_KEPT


def test_large_sources_are_kept_up_to_a_size_and_the_latest_always(interpreter: Interpreter) -> None:
    for number in range(10):
        interpreter.remember_source(f"<call {number}>", "#" * (SOURCES_BYTES // 3))
        assert interpreter.source_bytes <= SOURCES_BYTES
    assert list(interpreter.linecache.cache) == ["<call 7>", "<call 8>", "<call 9>"]
    interpreter.remember_source("<huge>", "#" * (3 * SOURCES_BYTES))
    assert list(interpreter.linecache.cache) == ["<huge>"]
    interpreter.remember_source("<small>", "pass")
    assert (list(interpreter.linecache.cache), interpreter.source_bytes) == (["<small>"], 4)
