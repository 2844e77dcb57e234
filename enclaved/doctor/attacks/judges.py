"""Judges: small pure functions that are put together. A judge of nothing seen says inconclusive."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from enclaved.doctor.attacks.base import Answer, Evidence, Judge, Judgement, Outcome, contained, escaped, inconclusive

REFUSALS: Final = frozenset({"EPERM", "EACCES", "ENOSYS"})
NO_SUCH: Final = REFUSALS | {"ENOENT", "EROFS", "ENXIO", "ENOTDIR", "ELOOP"}
UNREACHABLE: Final = REFUSALS | {"ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT", "ENETDOWN"}
NOBODY_THERE: Final = UNREACHABLE | {"ECONNREFUSED", "ENOENT"}

REFUSED_CODES: Final = frozenset(
    {
        "INVALID_ARGUMENT",
        "PERMISSION_DENIED",
        "NOT_FOUND",
        "FAILED_PRECONDITION",
        "RESOURCE_EXHAUSTED",
        "OUT_OF_RANGE",
        "UNAUTHENTICATED",
        "ALREADY_EXISTS",
    }
)
"""How a daemon says no. INTERNAL and UNKNOWN are faults of its own."""
FAULTS: Final = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS", "500", "502"})

_SEVERITY: Final = {Outcome.CONTAINED: 0, Outcome.INCONCLUSIVE: 1, Outcome.ESCAPED: 2}


def all_of(*judges: Judge) -> Judge:
    """Puts judges together: an escape that one sees counts before what another could not see."""

    def judge(seen: Evidence) -> Judgement:
        found = [each(seen) for each in judges]
        worst = max(found, key=lambda judgement: _SEVERITY[judgement.outcome])
        return found[0] if worst.outcome is Outcome.CONTAINED else worst

    return judge


def refuses(*names: str, by: Collection[str] = REFUSALS, otherwise: Outcome = Outcome.ESCAPED) -> Judge:
    """Each attempt was made and refused, with one of the errors ``by``.

    Success is an escape. For system calls another error is one as well (``otherwise``): then the call came past what
    should have refused it, and only found its harmless arguments wrong.
    """

    def judge(seen: Evidence) -> Judgement:
        through = [name for name in names if seen.told.get(name) == "ok"]
        if through:
            return escaped(f"not refused: {', '.join(through)}")
        missing = [name for name in names if name not in seen.told]
        odd = [f"{name} ({seen.told[name]})" for name in names if name in seen.told and seen.told[name] not in by]
        if odd:
            return Judgement(otherwise, f"not refused as it should be: {', '.join(odd)}")
        if missing:
            return inconclusive(f"it told nothing of {', '.join(missing)}{_end(seen)}")
        return contained(f"{len(names)} attempts refused")

    return judge


def tells(name: str, is_right: Callable[[object], bool], what: str) -> Judge:
    """The program told a value, and it is right."""

    def judge(seen: Evidence) -> Judgement:
        if name not in seen.told:
            return inconclusive(f"it told nothing of {name}{_end(seen)}")
        value = seen.told[name]
        return contained(what) if is_right(value) else escaped(f"{name} is {value!r}; right would be: {what}")

    return judge


def stays_below(name: str, most: float, least: float = 1) -> Judge:
    """The program told how much of something it got: some, and no more than there should be."""

    def judge(seen: Evidence) -> Judgement:
        value = seen.told.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
            return inconclusive(f"it told nothing of {name}, or too little to mean anything ({value!r}){_end(seen)}")
        return contained(f"{name}: {value:g}") if value <= most else escaped(f"{name}: {value:g}, above {most:g}")

    return judge


def lets_go(name: str, most: int) -> Judge:
    """The program could not hold on to more of something: it was killed before it told that it ``kept`` it."""

    def judge(seen: Evidence) -> Judgement:
        held = seen.told.get(name)
        if isinstance(held, bool) or not isinstance(held, int):
            return inconclusive(f"it told nothing of {name}{_end(seen)}")
        if held > most and "kept" in seen.told:
            return escaped(f"it kept {held} {name}, above {most}")
        return contained(f"it could keep no more than {most} {name}")

    return judge


def ends(*verdicts: str, exit_code: int | None = None, signal: int | None = None, attested: bool = False) -> Judge:
    """The execution ended as the daemon must say it did; anything else is a false status."""

    def judge(seen: Evidence) -> Judgement:
        run = seen.run
        if run is None or not run.verdict:
            return inconclusive("there was no verdict" + ("" if run is None else f": {run.said()}"))
        if run.verdict == "INTERNAL_ERROR":
            return inconclusive(f"the daemon could not run it: {run.message}")
        right = run.verdict in verdicts and exit_code in (None, run.exit_code) and signal in (None, run.signal)
        if not right:
            wanted = "/".join(verdicts) + "".join(f" {each}" for each in (exit_code, signal) if each is not None)
            return escaped(f"reported as {run.said()}, not as {wanted}")
        if attested and not run.attested:
            return escaped("the end is a claim of the program and not the kernel's")
        return contained(f"reported as {run.said()}")

    return judge


def nothing_left() -> Judge:
    """No process of the program lives on."""

    def judge(seen: Evidence) -> Judgement:
        if seen.processes_left is None:
            return inconclusive("nobody could look for what it left behind")
        left = seen.processes_left
        return (
            escaped(f"{len(left)} processes live on: {', '.join(left[:3])}") if left else contained("nothing lives on")
        )

    return judge


def still_works() -> Judge:
    """Ordinary code works afterwards."""

    def judge(seen: Evidence) -> Judgement:
        if seen.works is None:
            return inconclusive("nobody looked whether the sandbox works afterwards")
        return contained("the sandbox works") if seen.works else escaped("the sandbox does not work any more")

    return judge


def on_host(is_right: Callable[[dict[str, str]], str]) -> Judge:
    """The host's view of the process is right; ``is_right`` returns what is wrong with it, or nothing."""

    def judge(seen: Evidence) -> Judgement:
        if seen.status is None:
            return inconclusive("the process could not be looked at from the host")
        wrong = is_right(dict(seen.status))
        return escaped(f"seen from the host: {wrong}") if wrong else contained("seen from the host")

    return judge


def printed(sha256: str, size_bytes: int) -> Judge:
    """Exactly these bytes came out."""

    def judge(seen: Evidence) -> Judgement:
        if seen.run is None or not seen.run.stdout_bytes:
            return inconclusive(f"nothing came out{_end(seen)}")
        if (seen.run.stdout_sha256, seen.run.stdout_bytes) != (sha256, size_bytes):
            return escaped(f"{seen.run.stdout_bytes} bytes came out, and not the {size_bytes} that went in")
        return contained(f"all {size_bytes} bytes came out as they went in")

    return judge


def memory_below(growth_bytes: int) -> Judge:
    """The daemon's memory did not grow by more."""

    def judge(seen: Evidence) -> Judgement:
        if seen.memory_growth_bytes is None:
            return inconclusive("the daemon's memory could not be looked at")
        grown = f"the daemon's memory grew by {seen.memory_growth_bytes / 1048576:.0f} MiB"
        return contained(grown) if seen.memory_growth_bytes <= growth_bytes else escaped(grown)

    return judge


def log_is_clean() -> Judge:
    """Nothing that the program printed is in the daemon's log."""

    def judge(seen: Evidence) -> Judgement:
        if seen.log_has_marker is None:
            return inconclusive("the daemon's log cannot be seen")
        return escaped("its lines are in the daemon's log") if seen.log_has_marker else contained("not in the log")

    return judge


def answers(*codes: str, least: int = 1) -> Judge:
    """Every call was answered, and with one of these codes. OK, where it is none of them, is an escape."""
    allowed = frozenset(codes) or REFUSED_CODES

    def judge(seen: Evidence) -> Judgement:
        wrong = [_shown(name, answer) for name, answer in seen.answers.items() if answer.code not in allowed]
        faults = [_shown(name, answer) for name, answer in seen.answers.items() if answer.code in FAULTS]
        granted = [
            name for name, answer in seen.answers.items() if answer.code in ("OK", "200") and "OK" not in allowed
        ]
        if granted:
            return escaped(f"granted: {', '.join(granted[:4])}")
        if faults:
            return escaped(f"faults of the daemon: {', '.join(faults[:3])}")
        if len(seen.answers) < least:
            return inconclusive(f"{len(seen.answers)} of {least} calls were answered")
        if wrong:
            return inconclusive(f"answered otherwise: {', '.join(wrong[:4])}")
        return contained(f"{len(seen.answers)} calls answered as they should be")

    return judge


def finds(name: str, is_right: Callable[[object], bool], what: str) -> Judge:
    """The client found a value, and it is right."""

    def judge(seen: Evidence) -> Judgement:
        if name not in seen.facts:
            return inconclusive(f"the client found nothing of {name}")
        value = seen.facts[name]
        return contained(what) if is_right(value) else escaped(f"{name} is {value!r}; right would be: {what}")

    return judge


def as_control(judge: Judge) -> Judge:
    """Makes a judge one of ordinary code: whatever is not as it should be is a failure that is named."""

    def judged(seen: Evidence) -> Judgement:
        found = judge(seen)
        if found.outcome is Outcome.CONTAINED:
            return contained("works")
        error = seen.run.stderr.decode("utf-8", "replace").strip()[-300:] if seen.run else ""
        return escaped(f"ordinary code does not work: {found.why}{': ' if error else ''}{error}")

    return judged


def _shown(name: str, answer: Answer) -> str:
    return f"{name} ({answer.code}{': ' if answer.text else ''}{answer.text[:80]})"


def _end(seen: Evidence) -> str:
    if seen.run is None:
        return ""
    error = seen.run.stderr.decode("utf-8", "replace").strip().splitlines()
    return f" ({seen.run.said()}{': ' + error[-1][:160] if error else ''})"
