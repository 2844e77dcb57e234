"""What a guest says of a reset is hostile: only a whole and sober proof makes a member as new."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from enclaved.core.reset import ResetFailed, Shown, reset
from enclaved.core.state import Baseline
from enclaved.errors import GuestUnavailable

NUMBERS = ("removed", "left", "objects_removed", "objects_left", "processes", "keys", "variables")
CLEAN: Mapping[str, Any] = {**dict.fromkeys(NUMBERS, 0), "mounts": "m"}
PARKED: Mapping[str, Any] = {"type": "parked", "number": 1, "killed": 3, "contexts": 0, "untouched": CLEAN}


class Link:
    """Answers as it is told."""

    def __init__(self, answer: Mapping[str, Any] | Exception) -> None:
        self.answer = answer

    async def ask(self, kind: str, deadline_s: float, **fields: Any) -> Mapping[str, Any]:
        assert (kind, fields) == ("park", {"look": True})
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def shown(answer: Mapping[str, Any] | Exception, baseline: Baseline | None = None) -> Shown:
    record: Any = SimpleNamespace(running_link=lambda: Link(answer), executions_started=5)
    executions: Any = None
    return await reset(record, executions, baseline)


async def test_a_guest_that_shows_that_nothing_is_left_needs_no_cleaning() -> None:
    found = await shown(PARKED)
    assert (found.proof.processes_killed, found.proof.leftovers) == (3, ())
    assert found.baseline == Baseline("m", 0)


LEFT = {
    "contexts": ({**PARKED, "contexts": 2}, "2 contexts"),
    "processes": ({**PARKED, "untouched": {**CLEAN, "processes": 1}}, "1 processes"),
    "files": ({**PARKED, "untouched": {**CLEAN, "left": 1, "objects_left": 1}}, "2 files or shared objects"),
    "variables": ({**PARKED, "untouched": {**CLEAN, "variables": 4}}, "4 environment variables"),
    "keys": ({**PARKED, "untouched": {**CLEAN, "keys": 3}}, "2 keys"),
    "mounts": ({**PARKED, "untouched": {**CLEAN, "mounts": "other", "keys": 1}}, "another table of mounts"),
}


@pytest.mark.parametrize(("answer", "said"), LEFT.values(), ids=LEFT.keys())
async def test_whatever_is_left_fails_the_reset_and_is_named(answer: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ResetFailed, match=said) as caught:
        await shown(answer, Baseline("m", 1))
    assert caught.value.proof is not None


NONSENSE = {
    "no_number": {**PARKED, "killed": "many"},
    "no_contexts": {key: value for key, value in PARKED.items() if key != "contexts"},
    "contexts_below_zero": {**PARKED, "contexts": -1},
    "no_report": {**PARKED, "untouched": "yes"},
    "half_a_report": {**PARKED, "untouched": {"removed": 0, "left": 0}},
    "a_truth": {**PARKED, "untouched": {**CLEAN, "left": False}},
    "less_than_nothing": {**PARKED, "untouched": {**CLEAN, "left": -1}},
    "a_flood": {**PARKED, "untouched": {**CLEAN, "mounts": "m" * 1000}},
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_proves_nothing(answer: Mapping[str, Any]) -> None:
    with pytest.raises(ResetFailed):
        await shown(answer)


async def test_a_guest_that_does_not_answer_proves_nothing() -> None:
    with pytest.raises(ResetFailed, match="away"):
        await shown(GuestUnavailable("away"))
