"""The answers of a pool's last calls: how many and how much of them is kept, and for how long."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from enclaved.core import answers as module
from enclaved.core.answers import Answers
from enclaved.model import STDOUT, RunResult


def ended(execution_id: str, output: bytes = b"", *, chosen: bool = True) -> tuple[Any, RunResult]:
    finished: Any = SimpleNamespace(bytes_total={STDOUT: len(output)})
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_result(finished)
    execution = SimpleNamespace(
        id=execution_id, row=SimpleNamespace(chosen=chosen), record=SimpleNamespace(id="box"), ended=future
    )
    return execution, RunResult(execution_id, output, b"", (), finished)


async def test_an_answer_is_kept_with_its_output() -> None:
    answers = Answers()
    execution, result = ended("a", b"said")
    answers.keep(execution, result)
    assert answers.is_whole("a")
    assert await answers.get("a") == ("box", result)


async def test_a_call_that_nobody_has_named_is_not_kept() -> None:
    answers = Answers()
    answers.keep(*ended("a", chosen=False))
    assert not answers.has("a")


async def test_an_answer_that_nobody_has_gathered_says_what_is_missing() -> None:
    answers = Answers()
    answers.keep(ended("a", b"said")[0], None)
    assert not answers.is_whole("a")
    _, result = await answers.get("a")
    assert (result.stdout, [notice.length_bytes for notice in result.notices]) == (b"", [4])


async def test_beyond_a_limit_the_oldest_answers_are_kept_without_their_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTPUT_MOST_BYTES", 10)
    answers = Answers()
    for name in "abc":
        answers.keep(*ended(name, b"12345"))
    found = [(await answers.get(name))[1] for name in "abc"]
    assert [result.stdout for result in found] == [b"", b"12345", b"12345"]
    assert [notice.length_bytes for notice in found[0].notices] == [5]


async def test_there_is_a_limit_to_the_answers_of_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWERS_MOST", 2)
    answers = Answers()
    for name in "abc":
        answers.keep(*ended(name, b"1"))
    assert [answers.has(name) for name in "abc"] == [False, True, True]


async def test_an_answer_is_forgotten_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORD_KEPT_S", -1.0)
    answers = Answers()
    answers.keep(*ended("a", b"1"))
    assert not answers.has("a")
