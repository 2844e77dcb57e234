"""What clients asked for and heard, and whether that fits together with what there is in the end.

A small model checker for recorded histories: every attempt of every client is an operation with a beginning, an end and
an outcome, and the rules below say which ends of the world are possible after them.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["done", "refused", "unknown"]
"""Unknown: the connection broke off, so that nobody can say whether it was done."""
CHANGES: Mapping[str, str] = {
    "create": "RUNNING",
    "start": "RUNNING",
    "resume": "RUNNING",
    "pause": "PAUSED",
    "stop": "STOPPED",
}
"""The state of a sandbox after an operation."""


@dataclass
class Operation:
    """One attempt of one client."""

    client: str
    kind: str
    subject: str
    """The sandbox, or its request id as long as it has no other."""
    wanted: Any = None
    """What was asked for, where an end of the world can show it: labels, a file's content."""
    begun: int = 0
    ended: int | None = None
    outcome: Outcome = "unknown"
    answer: Any = None
    refusal: str = ""
    """What the daemon said when it refused."""


@dataclass
class Run:
    """What a client was told of one program, and what is known of it beforehand."""

    execution_id: str
    sandbox_id: str
    expected: Mapping[int, bytes]
    """Its output by channel."""
    verdicts: tuple[str, ...]
    """One of these is true."""
    got: dict[int, bytearray] = field(default_factory=lambda: {1: bytearray(), 2: bytearray()})
    was_started: bool = False
    """The client was told that it runs, by a daemon before the one that told the verdict or by one that ran it."""
    verdict: str = ""
    message: str = ""
    faults: list[str] = field(default_factory=list)


@dataclass
class Seen:
    """What there is when nobody does anything any more."""

    sandboxes: Mapping[str, Any]
    """What ListSandboxes shows, by id."""
    containers: Mapping[str, str]
    """The sandbox of each container, by container."""
    rows: Mapping[str, Mapping[str, Any]]
    """The table ``sandboxes``, by id."""
    execution_rows: Mapping[str, str]
    """The sandbox of each row of ``executions`` that has no end yet, by id. Ends are kept for a while."""
    directories: frozenset[str]
    """Names of directories of sandboxes."""
    files: Mapping[tuple[str, str], bytes | None] = field(default_factory=dict)
    """Content of files that clients wrote, by sandbox and path."""
    ran: Mapping[str, int] = field(default_factory=dict)
    """How often each program began to run, as it says itself, by execution."""


class History:
    """Everything that clients did, in order."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.runs: list[Run] = []
        self.looks: list[tuple[int, int, str, bool]] = []
        """Beginning, end, sandbox, and whether it was there."""
        self.troubles: list[str] = []
        """What clients saw that must not be."""
        self.keeps_files: set[str] = set()
        """Sandboxes that have their files when they are started again."""
        self._clock = itertools.count(1)

    def now(self) -> int:
        """A moment, later than all before."""
        return next(self._clock)

    @property
    def acknowledged(self) -> list[Operation]:
        """What was done for certain, but for looks."""
        return [found for found in self.operations if found.outcome == "done" and found.kind not in ("list", "look")]

    @contextmanager
    def attempt(self, client: str, kind: str, subject: str, wanted: Any = None) -> Iterator[Operation]:
        """Records an attempt. Whoever makes it sets the outcome, unless that stays unknown."""
        operation = Operation(client, kind, subject, wanted, begun=self.now())
        self.operations.append(operation)
        try:
            yield operation
        finally:
            operation.ended = self.now()

    def faults(self, seen: Seen) -> list[str]:
        """Everything that cannot be so; empty if all is well."""
        return [
            *self.troubles,
            *self._faults_of_sandboxes(seen),
            *self._faults_of_requests(seen),
            *self._faults_of_files(seen),
            *self._faults_of_runs(seen),
            *leaks(seen),
        ]

    # -- the rules

    def _of(self, sandbox_id: str, *kinds: str) -> list[Operation]:
        return [found for found in self.operations if found.subject == sandbox_id and found.kind in kinds]

    def is_emptied(self, sandbox_id: str) -> bool:
        """Whether a sandbox may have lost its files, since somebody stopped it and it does not keep them."""
        return sandbox_id not in self.keeps_files and bool(self._of(sandbox_id, "stop"))

    def _faults_of_sandboxes(self, seen: Seen) -> Iterator[str]:
        """Acknowledged means present, until it was deleted; what was deleted never comes back."""
        for sandbox_id in sorted({found.subject for found in self.operations if found.kind == "create"}):
            created = [found for found in self._of(sandbox_id, "create") if found.outcome == "done"]
            deletions = self._of(sandbox_id, "delete")
            deleted = [found for found in deletions if found.outcome == "done"]
            is_there = sandbox_id in seen.sandboxes
            if created and not deletions and not is_there:
                yield f"{sandbox_id} was acknowledged and is gone"
            if deleted and is_there:
                yield f"{sandbox_id} was deleted and is there"
            for begun, _, subject, found in self.looks:
                if subject == sandbox_id and found and any(begun > (end.ended or 0) for end in deleted):
                    yield f"{sandbox_id} came back after its deletion"
            if is_there:
                yield from self._faults_of_state(sandbox_id, seen.sandboxes[sandbox_id])

    def _faults_of_state(self, sandbox_id: str, sandbox: Any) -> Iterator[str]:
        """The state is that of the last change, or of one whose outcome is unknown and which nothing overtook."""
        possible = {CHANGES[found.kind] for found in _last(self._of(sandbox_id, *CHANGES))}
        state = state_of(sandbox)
        if possible and state not in possible and not self._of(sandbox_id, "delete"):
            yield f"{sandbox_id} is {state} ({sandbox.state_reason}), possible is {sorted(possible)}"
        possible_labels = [found.wanted for found in _last(self._of(sandbox_id, "update", "create"))]
        if possible_labels and dict(sandbox.labels) not in possible_labels:
            yield f"{sandbox_id} has the labels {dict(sandbox.labels)}, possible is {possible_labels}"

    def _faults_of_requests(self, seen: Seen) -> Iterator[str]:
        """One sandbox for one request id, however often it was asked for."""
        made: dict[str, set[str]] = defaultdict(set)
        for found in self.operations:
            if found.kind == "create" and found.outcome == "done" and isinstance(found.wanted, Mapping):
                made[found.wanted.get("request", "")].add(found.subject)
        for sandbox_id, sandbox in seen.sandboxes.items():
            made[sandbox.labels.get("request", "")].add(sandbox_id)
        for request_id, sandboxes in made.items():
            if request_id and len(sandboxes) > 1:
                yield f"request {request_id} made {len(sandboxes)} sandboxes: {sorted(sandboxes)}"

    def _faults_of_files(self, seen: Seen) -> Iterator[str]:
        """What was written is there, whole, or what an attempt with an unknown outcome wrote after it."""
        for (sandbox_id, path), content in seen.files.items():
            if self.is_emptied(sandbox_id):
                continue
            writes = [found for found in self._of(sandbox_id, "write") if found.answer == path]
            possible = [found.wanted for found in _last(writes)]
            if all(found.outcome != "done" for found in writes):
                possible.append(None)
            if content not in possible:
                size = "missing" if content is None else f"{len(content)} bytes"
                yield f"{path} in {sandbox_id} is {size}, possible is {[len(one or b'') for one in possible]}"

    def _faults_of_runs(self, seen: Seen) -> Iterator[str]:
        """Every program at most once, every byte once, and the true verdict."""
        for run in self.runs:
            name, times = run.execution_id, seen.ran.get(run.execution_id, 0)
            yield from (f"{name}: {fault}" for fault in run.faults)
            if times > 1:
                yield f"{name} ran {times} times"
            if not run.verdict:
                yield f"{name} never had a verdict"
            elif run.verdict == "INTERNAL_ERROR" and not run.was_started and times == 0:
                continue  # its job was never sent, and nobody had been told that it runs
            elif run.verdict not in run.verdicts:
                yield f"{name} was told {run.verdict} ({run.message}), true is {run.verdicts}; it ran {times} times"
            elif name in seen.ran and times != 1 and not self.is_emptied(run.sandbox_id):
                yield f"{name} ended as {run.verdict} and ran {times} times"
            elif run.verdict != "SANDBOX_LOST":
                for channel, expected in run.expected.items():
                    if (got := bytes(run.got[channel])) != expected:
                        yield f"{name}: channel {channel} has {len(got)} bytes, its program wrote {len(expected)}"

    def refused(self, *but: str) -> list[str]:
        """What was refused, except for some kinds of operations."""
        found = [
            each for each in self.operations if each.outcome == "refused" and each.refusal and each.kind not in but
        ]
        return [f"{each.client} was refused to {each.kind} {each.subject}: {each.refusal}" for each in found]

    def summary(self) -> Counter[str]:
        """How many operations of each kind there were, with those that had to be tried again."""
        done = Counter(found.kind for found in self.operations if found.outcome == "done")
        cut_off = sum(found.outcome == "unknown" for found in self.operations)
        return done + Counter({"program": len(self.runs), "cut off": cut_off})


def leaks(seen: Seen) -> Iterator[str]:
    """What belongs to nothing: containers, directories, rows; and what two have that only one may have."""
    for container_id, sandbox_id in seen.containers.items():
        row = seen.rows.get(sandbox_id)
        if row is None or row["container_id"] != container_id:
            yield f"container {container_id[:12]} of {sandbox_id} belongs to nothing"
    for sandbox_id, row in seen.rows.items():
        if sandbox_id not in seen.sandboxes:
            yield f"{sandbox_id} is written down as {row['state']} and nobody shows it"
        if row["container_id"] and row["container_id"] not in seen.containers:
            yield f"{sandbox_id} has a container on paper only"
    for sandbox_id, sandbox in seen.sandboxes.items():
        if sandbox_id not in seen.rows:
            yield f"{sandbox_id} is not written down"
        elif seen.rows[sandbox_id]["state"].lower() != state_of(sandbox).lower():
            yield f"{sandbox_id} is {state_of(sandbox)}, and written down as {seen.rows[sandbox_id]['state']}"
        if state_of(sandbox) in ("INITIALIZING", "STOPPING", "DELETING"):
            yield f"{sandbox_id} is still {state_of(sandbox)}"
    used = {row["directory"].rsplit("/", 1)[1]: row for row in seen.rows.values()}
    yield from (f"directory {name} belongs to nothing" for name in seen.directories - used.keys())
    for name, row in used.items():
        if row["container_id"] and name not in seen.directories:
            yield f"{row['id']} has no directory"
    for uid, count in Counter(row["uid"] for row in seen.rows.values()).items():
        if count > 1:
            yield f"{count} sandboxes have the user id {uid}"
    for execution_id, sandbox_id in seen.execution_rows.items():
        if sandbox_id not in seen.rows:
            yield f"{execution_id} is written down as running, and its sandbox {sandbox_id} is not"


def state_of(sandbox: Any) -> str:
    """The name of a sandbox's state."""
    name: str = sandbox.State.Name(sandbox.state)
    return name.removeprefix("STATE_")


def _last(operations: Iterable[Operation]) -> list[Operation]:
    """The operations of which any may have been the last to take effect: none of them is certainly followed by another.

    What was refused had no effect. One that is unknown may have had one, and then at any time after its beginning, as
    long as its daemon lived: nothing of it happens after the next attempt begins.
    """
    counted = [found for found in operations if found.outcome != "refused"]
    certain = [found for found in counted if found.outcome == "done"]
    return [
        found
        for found in counted
        if not any(other is not found and other.begun > (found.ended or 0) for other in certain)
    ]
