"""The judges of the attacks: what they say of nothing, of the opposite, and of a daemon that grants everything."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from enclaved.doctor.attacks import judges
from enclaved.doctor.attacks.base import (
    Answer,
    Attack,
    Category,
    Evidence,
    Judge,
    Outcome,
    Program,
    Run,
    contained,
    judge,
    told_in,
)
from enclaved.doctor.attacks.prelude import with_prelude
from enclaved.doctor.attacks.suite import SUITE

IDS = [attack.id for attack in SUITE]
CALM = Evidence(works=True, neighbour_works=True, processes_left=(), memory_growth_bytes=0, log_has_marker=False)
SILENT = replace(CALM, run=Run("EXITED", exit_code=0, attested=True, stdout=b"blocked\n", stdout_bytes=8))
ENDED = Run("EXITED", exit_code=0, attested=True)

# What is judged by the end, the daemon's log or its memory alone: a program of these has nothing to tell.
BY_THE_END = {
    attack.id
    for attack in SUITE
    if attack.category in (Category.EXIT, Category.TERMINATION, Category.CONTROLS)
    or attack.id in ("output.forged-log", "protocol.breaks-the-runtime", "protocol.deep-recursion")
    or attack.id in ("protocol.signals-to-all", "protocol.stops-all", "protocol.source-that-explodes")
}


def test_there_are_at_least_sixty_attacks_over_all_categories() -> None:
    counts = Counter(attack.category for attack in SUITE)

    assert set(counts) == set(Category)
    assert len(SUITE) - counts[Category.CONTROLS] >= 60
    assert all(count >= 5 for count in counts.values()), counts


def test_every_attack_has_an_id_of_its_own_and_one_sentence() -> None:
    assert len(set(IDS)) == len(IDS)
    assert all(attack.sentence.endswith(".") and attack.sentence[0].isupper() for attack in SUITE)
    assert all((attack.program is None) != (attack.act is None) for attack in SUITE)


@pytest.mark.parametrize("attack", SUITE, ids=IDS)
def test_what_was_not_seen_is_never_contained(attack: Attack) -> None:
    assert judge(attack, Evidence()).outcome is not Outcome.CONTAINED


@pytest.mark.parametrize("attack", [each for each in SUITE if each.id not in BY_THE_END], ids=lambda each: each.id)
def test_a_program_that_tells_nothing_but_that_it_was_blocked_proves_nothing(attack: Attack) -> None:
    assert judge(attack, SILENT).outcome is not Outcome.CONTAINED


@pytest.mark.parametrize("attack", SUITE, ids=IDS)
def test_nothing_is_contained_once_the_daemon_or_a_neighbour_suffered(attack: Attack) -> None:
    for seen in (
        replace(SILENT, daemon_lives=False),
        replace(SILENT, neighbour_works=False),
        replace(SILENT, contacts=("a port of the host",)),
        replace(SILENT, secrets=("a file of the host",)),
    ):
        assert judge(attack, seen).outcome is Outcome.ESCAPED


@pytest.mark.parametrize(
    "attack",
    [each for each in SUITE if each.program is not None and not each.program.is_shell],
    ids=lambda each: each.id,
)
def test_every_program_is_python_with_its_prelude(attack: Attack) -> None:
    assert attack.program is not None

    compile(with_prelude(attack.program, {"nonce": "n"}), attack.id, "exec")


TOLD = {"a": "EPERM", "b": "ENOSYS"}
RIGHT: dict[str, tuple[Judge, Evidence]] = {
    "refused": (judges.refuses("a", "b"), replace(CALM, told=TOLD)),
    "a value": (judges.tells("x", lambda value: value == [], "nothing"), replace(CALM, told={"x": []})),
    "a bound": (judges.stays_below("x", 10), replace(CALM, told={"x": 10})),
    "an end": (judges.ends("EXITED", exit_code=0, attested=True), replace(CALM, run=ENDED)),
    "nothing left": (judges.nothing_left(), CALM),
    "it works": (judges.still_works(), CALM),
    "bytes": (judges.printed("s", 3), replace(CALM, run=replace(ENDED, stdout_sha256="s", stdout_bytes=3))),
    "memory": (judges.memory_below(5), replace(CALM, memory_growth_bytes=5)),
    "a log": (judges.log_is_clean(), CALM),
    "answers": (judges.answers(least=1), replace(CALM, answers={"a": Answer("PERMISSION_DENIED")})),
    "a fact": (judges.finds("x", bool, "some"), replace(CALM, facts={"x": 1})),
    "the host's view": (judges.on_host(lambda status: "" if status else "x"), replace(CALM, status={"Uid": "1"})),
}
WRONG: dict[str, tuple[Judge, Evidence]] = {
    "one was not refused": (judges.refuses("a", "b"), replace(CALM, told={**TOLD, "b": "ok"})),
    "a call came past the filter": (judges.refuses("a", "b"), replace(CALM, told={**TOLD, "b": "EFAULT"})),
    "a value": (judges.tells("x", lambda value: value == [], "nothing"), replace(CALM, told={"x": ["y"]})),
    "beyond a bound": (judges.stays_below("x", 10), replace(CALM, told={"x": 11})),
    "another code": (judges.ends("EXITED", exit_code=1), replace(CALM, run=ENDED)),
    "another verdict": (judges.ends("SIGNALED", signal=9), replace(CALM, run=ENDED)),
    "a claim": (judges.ends("EXITED", attested=True), replace(CALM, run=replace(ENDED, attested=False))),
    "something lives on": (judges.nothing_left(), replace(CALM, processes_left=("process 7",))),
    "it does not work": (judges.still_works(), replace(CALM, works=False)),
    "other bytes": (judges.printed("s", 3), replace(CALM, run=replace(ENDED, stdout_sha256="t", stdout_bytes=3))),
    "fewer bytes": (judges.printed("s", 3), replace(CALM, run=replace(ENDED, stdout_sha256="s", stdout_bytes=2))),
    "memory": (judges.memory_below(5), replace(CALM, memory_growth_bytes=6)),
    "a log": (judges.log_is_clean(), replace(CALM, log_has_marker=True)),
    "granted": (judges.answers(), replace(CALM, answers={"a": Answer("OK"), "b": Answer("NOT_FOUND")})),
    "a fault": (judges.answers(), replace(CALM, answers={"a": Answer("INTERNAL")})),
    "a fact": (judges.finds("x", bool, "some"), replace(CALM, facts={"x": 0})),
    "the host's view": (judges.on_host(lambda status: status["Uid"]), replace(CALM, status={"Uid": "0"})),
    "the worse of two": (judges.all_of(judges.still_works(), judges.ends("TIMEOUT")), replace(CALM, run=ENDED)),
    "a control": (judges.as_control(judges.ends("EXITED", exit_code=0)), replace(CALM, run=Run("TIMEOUT"))),
}
UNCLEAR: dict[str, tuple[Judge, Evidence]] = {
    "an attempt is missing": (judges.refuses("a", "b"), replace(CALM, told={"a": "EPERM"})),
    "an odd error": (
        judges.refuses("a", otherwise=Outcome.INCONCLUSIVE),
        replace(CALM, told={"a": "ENOMEM"}),
    ),
    "no number": (judges.stays_below("x", 10), replace(CALM, told={"x": True})),
    "too little": (judges.stays_below("x", 10), replace(CALM, told={"x": 0})),
    "the call failed": (judges.ends("EXITED"), replace(CALM, run=Run("", error="UNAVAILABLE"))),
    "a fault of the daemon": (judges.ends("EXITED"), replace(CALM, run=Run("INTERNAL_ERROR"))),
    "too few answers": (judges.answers(least=2), replace(CALM, answers={"a": Answer("NOT_FOUND")})),
    "no answer in time": (judges.answers(), replace(CALM, answers={"a": Answer("timeout")})),
    "a daemon that is away": (judges.answers(), replace(CALM, answers={"a": Answer("UNAVAILABLE")})),
}


@pytest.mark.parametrize(("given", "seen"), RIGHT.values(), ids=RIGHT)
def test_a_judge_sees_that_all_is_well(given: Judge, seen: Evidence) -> None:
    assert given(seen).outcome is Outcome.CONTAINED


@pytest.mark.parametrize(("given", "seen"), WRONG.values(), ids=WRONG)
def test_a_judge_sees_an_escape(given: Judge, seen: Evidence) -> None:
    assert given(seen).outcome is Outcome.ESCAPED


@pytest.mark.parametrize(("given", "seen"), UNCLEAR.values(), ids=UNCLEAR)
def test_a_judge_says_what_it_could_not_see(given: Judge, seen: Evidence) -> None:
    assert given(seen).outcome is Outcome.INCONCLUSIVE


def test_only_what_is_told_under_the_nonce_of_the_run_counts() -> None:
    output = b'@other ["a", 1]\n@n ["b", 2]\n@n no JSON\n@n [1, 2]\n@n ["c"]\n@n ["b", 3]\nx @n ["d", 4]\n'

    assert told_in(output, "n") == {"b": 3}


def test_a_sandbox_that_may_end_is_not_held_against_an_attack() -> None:
    attack = Attack("x.y", Category.ESCAPE, "Tries.", lambda _: contained("ok"), Program("1"), ends_sandbox=True)

    assert judge(attack, replace(CALM, works=False)).outcome is Outcome.CONTAINED
    assert judge(replace(attack, ends_sandbox=False), replace(CALM, works=False)).outcome is Outcome.ESCAPED


def test_facts_reach_a_program_whatever_stands_in_them() -> None:
    facts = {"nonce": "n", "odd": "'\"\\\n\u2028"}
    names: dict[str, object] = {}

    first, _, _ = with_prelude(Program("pass\n"), facts).partition("\n")
    exec(first, names)

    assert json.loads(str(names["FACTS_JSON"])) == facts
