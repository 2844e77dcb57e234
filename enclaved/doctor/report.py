"""What a run of attacks came to: a score by category, what failed and why; as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from enclaved.doctor.attacks.base import Category, Outcome
from enclaved.doctor.stage import Result


@dataclass(frozen=True, slots=True)
class Score:
    """How many attacks of a category came to what."""

    category: Category
    contained: int
    escaped: int
    inconclusive: int
    not_run: int

    @property
    def run(self) -> int:
        """How many were played."""
        return self.contained + self.escaped + self.inconclusive


@dataclass(frozen=True, slots=True)
class AttackReport:
    """All results of one run."""

    results: tuple[Result, ...]
    daemon: str
    """What was attacked."""
    seconds: float
    cut_short: bool = False
    """Whether it ended at the first failure, with attacks that were not played."""
    problems: tuple[str, ...] = field(default=())
    """What went wrong beside the attacks."""

    @property
    def passed(self) -> bool:
        """Whether every attack that was played was contained, every control works, and some were played."""
        played = [result for result in self.results if result.judgement is not None]
        return bool(played) and all(result.is_good for result in self.results) and not self.problems

    def scores(self) -> list[Score]:
        """Counts by category, in the order of the categories."""
        return [
            _score(category, found)
            for category in Category
            if (found := [result for result in self.results if result.attack.category is category])
        ]

    def lines(self) -> Iterator[str]:
        """Writes the report for a person."""
        for result in self.results:
            if result.judgement is not None and not result.is_good:
                yield f"{result.judgement.outcome.value.upper()} {result.attack.id}: {result.attack.sentence}"
                yield f"    {result.judgement.why}"
        for reason, names in _not_run(self.results).items():
            yield f"not run, since {reason}: {', '.join(names)}"
        for problem in self.problems:
            yield f"PROBLEM {problem}"
        yield f"{'category':<14}{'contained':>10}{'of':>5}"
        for score in self.scores():
            name = "works" if score.category is Category.CONTROLS else ""
            rest = [f"{score.escaped} escaped"] * bool(score.escaped)
            rest += [f"{score.inconclusive} inconclusive"] * bool(score.inconclusive)
            rest += [f"{score.not_run} not run"] * bool(score.not_run)
            note = "  ".join(["", *([name] if name else []), *rest])
            yield f"{score.category.value:<14}{score.contained:>10}{score.run:>5}{note}"
        attacks = [score for score in self.scores() if score.category is not Category.CONTROLS]
        contained, run = sum(score.contained for score in attacks), sum(score.run for score in attacks)
        yield f"{contained} of {run} attacks contained in {self.seconds:.0f} s ({self.daemon})"
        if self.cut_short:
            yield "stopped at the first failure; --keep-going plays all"

    def as_json(self) -> dict[str, Any]:
        """Returns the report as an object of JSON."""
        return {
            "daemon": self.daemon,
            "passed": self.passed,
            "seconds": round(self.seconds, 1),
            "cut_short": self.cut_short,
            "problems": list(self.problems),
            "scores": {
                score.category.value: {
                    "contained": score.contained,
                    "escaped": score.escaped,
                    "inconclusive": score.inconclusive,
                    "not_run": score.not_run,
                }
                for score in self.scores()
            },
            "attacks": [
                {
                    "id": result.attack.id,
                    "category": result.attack.category.value,
                    "what": result.attack.sentence,
                    "outcome": result.judgement.outcome.value if result.judgement else "not run",
                    "why": result.judgement.why if result.judgement else result.not_run,
                    "seconds": result.seconds,
                }
                for result in self.results
            ],
        }


def _score(category: Category, found: Sequence[Result]) -> Score:
    outcomes = [result.judgement.outcome for result in found if result.judgement is not None]
    return Score(
        category,
        contained=outcomes.count(Outcome.CONTAINED),
        escaped=outcomes.count(Outcome.ESCAPED),
        inconclusive=outcomes.count(Outcome.INCONCLUSIVE),
        not_run=len(found) - len(outcomes),
    )


def _not_run(results: Sequence[Result]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for result in results:
        if result.judgement is None:
            found.setdefault(result.not_run, []).append(result.attack.id)
    return found
