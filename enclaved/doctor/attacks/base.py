"""What an attack is, what was seen of it, and how the two become a judgement.

An attack has a program or an act of a client, and a judge. The judge is a pure function from what was seen outside of
the sandbox to contained, escaped or inconclusive. What a program tells counts only together with how it ended; one that
tells nothing is never taken for contained.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from enclaved.doctor.act import Act

MIB: Final = 1024 * 1024

Told = str | int | float | bool | list[Any] | dict[str, Any] | None


class Category(enum.Enum):
    """What an attack is aimed at."""

    ESCAPE = "escape"
    PROFILE = "profile"
    NETWORK = "network"
    RESOURCES = "resources"
    TENANCY = "tenancy"
    TERMINATION = "termination"
    EXIT = "exit"
    PROTOCOL = "protocol"
    OUTPUT = "output"
    INPUT = "input"
    ARTEFACTS = "artefacts"
    CLIENTS = "clients"
    CONTROLS = "controls"


class Outcome(enum.Enum):
    """What became of an attack; of a control: whether it works."""

    CONTAINED = "contained"
    ESCAPED = "escaped"
    INCONCLUSIVE = "inconclusive"
    """It could not be seen. Nothing is proved, so it counts as a failure."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of an attack, and why one thinks so."""

    outcome: Outcome
    why: str


def contained(why: str) -> Judgement:
    """Returns that nothing got out."""
    return Judgement(Outcome.CONTAINED, why)


def escaped(why: str) -> Judgement:
    """Returns that a protection did not hold."""
    return Judgement(Outcome.ESCAPED, why)


def inconclusive(why: str) -> Judgement:
    """Returns that what was seen proves nothing."""
    return Judgement(Outcome.INCONCLUSIVE, why)


@dataclass(frozen=True, slots=True)
class Program:
    """What runs in a sandbox, and how it is called."""

    source: str
    """Python, after the prelude (`enclaved/doctor/attacks/prelude.py`); or a shell command."""
    is_shell: bool = False
    isolated: bool = True
    timeout_s: float = 20.0
    stdin: bytes | None = None
    """Bytes for its standard input; ``None``: it has none."""
    ends_input: bool = True
    output_limit_bytes: int | None = None
    look_when_ready: bool = False
    """Whether it tells ``ready`` and then waits for the end of its input, so that the host can look at it."""
    cancel_when_ready: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """How an execution ended, as the daemon says, and what came out of it."""

    verdict: str
    """Name of the verdict without its prefix; empty if the call failed."""
    exit_code: int | None = None
    signal: int | None = None
    attested: bool = False
    stdout: bytes = b""
    """The first MiB."""
    stderr: bytes = b""
    """The first 64 KiB."""
    stdout_bytes: int = 0
    stdout_sha256: str = ""
    message: str = ""
    error: str = ""
    """Status and text of a call that failed."""

    def said(self) -> str:
        """Returns how it ended, in a few words."""
        if self.error:
            return f"the call failed with {self.error}"
        code = "" if self.exit_code is None else f" with exit code {self.exit_code}"
        number = "" if self.signal is None else f" by signal {self.signal}"
        return f"{self.verdict}{code}{number}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call was answered with."""

    code: str
    """Name of the gRPC status, or the HTTP status as text."""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that was seen of one attack. What was not looked at is ``None`` or empty."""

    run: Run | None = None
    told: Mapping[str, Told] = field(default_factory=dict)
    """What the program told under this run's nonce, by name."""
    works: bool | None = None
    """Whether ordinary code still works in the sandbox."""
    neighbour_works: bool | None = None
    daemon_lives: bool = True
    processes_left: tuple[str, ...] | None = None
    """What of the program still runs after its end."""
    contacts: tuple[str, ...] = ()
    """Where something was reached that must be out of reach, as seen by who was reached."""
    secrets: tuple[str, ...] = ()
    """Markers from elsewhere that came out of the sandbox."""
    status: Mapping[str, str] | None = None
    """``/proc/PID/status`` of the program, read on the host, and ``net`` for the names of its interfaces."""
    neighbour_status: Mapping[str, str] | None = None
    memory_growth_bytes: int | None = None
    """How much more memory the daemon had at most while it went on."""
    log_has_marker: bool | None = None
    """Whether what the program printed stands in the daemon's log."""
    answers: Mapping[str, Answer] = field(default_factory=dict)
    facts: Mapping[str, Told] = field(default_factory=dict)
    """What an act of a client found out."""


Judge = Callable[[Evidence], Judgement]
ActOf = Callable[["Act"], Awaitable[Evidence]]


@dataclass(frozen=True, slots=True)
class Attack:
    """One hostile program or client, and how it is judged."""

    id: str
    category: Category
    sentence: str
    """What it tries."""
    judge: Judge
    program: Program | None = None
    act: ActOf | None = None
    """What a client does; what it returns is completed with what the stage saw."""
    looks_for_processes: bool = False
    ends_sandbox: bool = False
    """Whether its sandbox may be unusable afterwards."""
    alone: bool = False
    """Whether nothing else may run beside it, since the daemon's memory or a timing counts."""
    needs: frozenset[str] = frozenset()
    """What it cannot be judged without: ``host`` (the host's view of processes), ``log``, ``memory``, ``http``."""


def judge(attack: Attack, seen: Evidence) -> Judgement:
    """Judges an attack: first what no attack may do, then what this one is about."""
    if not seen.daemon_lives:
        return escaped("the daemon died")
    if seen.contacts:
        return escaped(f"it reached {', '.join(seen.contacts)}")
    if seen.secrets:
        return escaped(f"it read {', '.join(seen.secrets)}")
    if seen.neighbour_works is False:
        return escaped("a neighbouring sandbox does not work any more")
    if seen.works is False and not attack.ends_sandbox:
        return escaped("its sandbox does not work any more")
    return attack.judge(seen)


def told_in(output: bytes, nonce: str) -> dict[str, Told]:
    """Reads what a program told: lines ``@NONCE ["name", value]``. What has another nonce is its output."""
    found: dict[str, Told] = {}
    start = f"@{nonce} ".encode()
    for line in output.splitlines():
        if line.startswith(start) and len(line) < 65536:
            try:
                pair = json.loads(line.removeprefix(start))
            except ValueError:
                continue
            if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str):
                found[pair[0]] = pair[1]
    return found
