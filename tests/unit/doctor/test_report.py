"""What a run of attacks is reported as."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from enclaved.cli.doctor import doctor
from enclaved.doctor import attacking
from enclaved.doctor.attacking import NoSuchAttack, chosen
from enclaved.doctor.attacks.base import Attack, Category, Judgement, contained, escaped, inconclusive
from enclaved.doctor.attacks.suite import SUITE
from enclaved.doctor.checks import examination
from enclaved.doctor.checks.findings import Finding, Severity
from enclaved.doctor.report import AttackReport
from enclaved.doctor.stage import Result


def result(name: str, judgement: Judgement | None, category: Category = Category.ESCAPE) -> Result:
    attack = Attack(name, category, f"Tries {name}.", lambda _: contained(""))
    return Result(attack, judgement, 1.0, "" if judgement else "it needs a host")


GOOD = (result("escape.a", contained("refused")), result("control.a", contained("works"), Category.CONTROLS))


def report(*results: Result, problems: tuple[str, ...] = ()) -> AttackReport:
    return AttackReport(results, "a daemon", 3.0, problems=problems)


def test_a_run_in_which_all_is_contained_passes() -> None:
    lines = list(report(*GOOD).lines())

    assert report(*GOOD).passed
    assert lines[-1] == "1 of 1 attacks contained in 3 s (a daemon)"
    assert not any("ESCAPED" in line for line in lines)


@pytest.mark.parametrize(
    "bad",
    [
        result("escape.b", escaped("not refused: x")),
        result("escape.b", inconclusive("it told nothing")),
        result("control.b", escaped("does not work"), Category.CONTROLS),
    ],
)
def test_whatever_is_not_contained_fails_and_is_named(bad: Result) -> None:
    found = report(*GOOD, bad)
    text = "\n".join(found.lines())

    assert not found.passed
    assert bad.attack.id in text
    assert bad.attack.sentence in text
    assert bad.judgement is not None
    assert bad.judgement.why in text


def test_a_run_in_which_nothing_was_played_does_not_pass() -> None:
    assert not report().passed
    assert not report(result("escape.a", None)).passed


def test_an_attack_that_was_not_played_is_named_and_does_not_count_as_contained() -> None:
    found = report(*GOOD, result("escape.c", None))
    shown = found.as_json()

    assert found.passed
    assert "not run, since it needs a host: escape.c" in list(found.lines())
    assert shown["scores"]["escape"] == {"contained": 1, "escaped": 0, "inconclusive": 0, "not_run": 1}
    assert [attack["outcome"] for attack in shown["attacks"]] == ["contained", "contained", "not run"]


def test_a_problem_beside_the_attacks_fails_the_run() -> None:
    assert not report(*GOOD, problems=("the daemon does not answer any more",)).passed


def test_attacks_are_chosen_by_category_and_id() -> None:
    assert chosen() == SUITE
    assert {attack.category for attack in chosen(["network"])} == {Category.NETWORK}
    assert [attack.id for attack in chosen(ids=["escape.mounts"])] == ["escape.mounts"]
    with pytest.raises(NoSuchAttack, match=r"escape\.nonsense"):
        chosen(ids=["escape.nonsense"])
    with pytest.raises(NoSuchAttack, match="nonsense"):
        chosen(["nonsense"])


@pytest.mark.parametrize(("results", "code"), [(GOOD, 0), ((*GOOD, result("escape.b", escaped("out"))), 1), ((), 1)])
def test_the_command_ends_as_the_attacks_did(
    monkeypatch: pytest.MonkeyPatch, results: tuple[Result, ...], code: int
) -> None:
    async def played(*_: object, **__: object) -> AttackReport:
        return report(*results)

    monkeypatch.setattr(attacking, "attack", played)
    in_lines = CliRunner().invoke(doctor, ["--attack"], catch_exceptions=False)
    in_json = CliRunner().invoke(doctor, ["--attack", "--json"], catch_exceptions=False)

    assert (in_lines.exit_code, in_json.exit_code) == (code, code)
    assert in_lines.output.splitlines() == list(report(*results).lines())
    assert json.loads(in_json.output) == report(*results).as_json()


@pytest.mark.parametrize(
    ("severity", "fail_on", "code"),
    [
        (Severity.FAILURE, "failure", 1),
        (Severity.WARNING, "failure", 0),
        (Severity.WARNING, "warning", 1),
        (Severity.NOTE, "warning", 0),
        (Severity.NOTE, "note", 1),
        (Severity.OK, "note", 0),
    ],
)
def test_the_command_ends_as_severe_as_it_was_asked_to(
    monkeypatch: pytest.MonkeyPatch, severity: Severity, fail_on: str, code: int
) -> None:
    found = [Finding("a.good", Severity.OK, "fine"), Finding("a.b", severity, "found", "mend it")]
    monkeypatch.setattr(examination, "examine", lambda *_: found)
    in_lines = CliRunner().invoke(doctor, ["--fail-on", fail_on], catch_exceptions=False)
    in_json = CliRunner().invoke(doctor, ["--fail-on", fail_on, "--json"], catch_exceptions=False)

    assert (in_lines.exit_code, in_json.exit_code) == (code, code)
    assert ("fix: mend it" in in_lines.output) == (severity > Severity.OK)
    assert json.loads(in_json.output)["worst"] == severity.name.lower()


def test_the_command_lists_every_attack() -> None:
    listed = CliRunner().invoke(doctor, ["--list", "--json"], catch_exceptions=False)

    assert [each["id"] for each in json.loads(listed.output)] == [attack.id for attack in SUITE]
    assert len(CliRunner().invoke(doctor, ["--list"]).output.splitlines()) == len(SUITE)


@pytest.mark.parametrize(
    "arguments",
    [["--category", "escape"], ["--only", "x"], ["--attack", "--only", "nonsense"], ["--attack", "--category", "x"]],
)
def test_a_wrong_command_line_is_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(doctor, arguments).exit_code == 2
