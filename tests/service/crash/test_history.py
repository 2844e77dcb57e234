"""The checker finds what it is there to find."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ms_enclave.v1 import sandbox_service_pb2 as pb

from tests.service.crash.history import History, Outcome, Run, Seen

NOTHING = Seen(sandboxes={}, containers={}, rows={}, execution_rows={}, directories=frozenset())


def box(sandbox_id: str = "box", state: str = "RUNNING", request_id: str = "r") -> Any:
    return pb.Sandbox(id=sandbox_id, state=pb.Sandbox.State.Value(f"STATE_{state}"), labels={"request": request_id})


def world(*boxes: Any) -> Seen:
    """A world in which all is well with these sandboxes."""
    rows = {
        each.id: {
            "id": each.id,
            "uid": number,
            "container_id": f"c-{each.id}",
            "directory": f"/s/{each.id}",
            "state": pb.Sandbox.State.Name(each.state).removeprefix("STATE_").lower(),
        }
        for number, each in enumerate(boxes)
    }
    return Seen(
        sandboxes={each.id: each for each in boxes},
        containers={f"c-{each.id}": each.id for each in boxes},
        rows=rows,
        execution_rows={},
        directories=frozenset(each.id for each in boxes),
    )


def did(history: History, kind: str, subject: str = "box", outcome: Outcome = "done", wanted: Any = None) -> None:
    with history.attempt("c", kind, subject, wanted) as operation:
        operation.outcome = outcome
        operation.answer = "path" if kind == "write" else None


def created(sandbox_id: str = "box", outcome: Outcome = "done") -> History:
    history = History()
    did(history, "create", sandbox_id, outcome, {"request": "r"})
    return history


def test_what_was_acknowledged_must_be_there() -> None:
    assert created().faults(world(box())) == []
    assert created().faults(NOTHING) == ["box was acknowledged and is gone"]


def test_what_nobody_was_told_of_may_be_there_whole_or_not() -> None:
    assert created(outcome="unknown").faults(NOTHING) == []
    assert created(outcome="unknown").faults(world(box())) == []
    assert created(outcome="unknown").faults(world(box(state="INITIALIZING"))) != []


def test_what_was_deleted_must_not_come_back() -> None:
    history = created()
    did(history, "delete")
    assert history.faults(NOTHING) == []
    history.looks.append((history.now(), history.now(), "box", True))
    assert history.faults(NOTHING) == ["box came back after its deletion"]
    assert "box was deleted and is there" in history.faults(world(box()))


def test_one_request_makes_one_sandbox() -> None:
    history = created()
    assert history.faults(world(box(), box("another"))) == ["request r made 2 sandboxes: ['another', 'box']"]


def test_the_state_is_that_of_the_last_change_or_of_one_that_broke_off() -> None:
    history = created()
    did(history, "pause")
    assert history.faults(world(box(state="PAUSED"))) == []
    assert history.faults(world(box())) != []
    did(history, "resume", outcome="unknown")
    assert history.faults(world(box(state="PAUSED"))) == history.faults(world(box())) == []
    did(history, "resume")
    assert history.faults(world(box(state="PAUSED"))) != []


def test_a_file_is_what_was_written_last_or_by_a_write_that_broke_off() -> None:
    history = created()
    did(history, "write", wanted=b"one")
    seen = world(box())
    assert history.faults(replace(seen, files={("box", "path"): b"one"})) == []
    assert history.faults(replace(seen, files={("box", "path"): b"on"})) != []
    assert history.faults(replace(seen, files={("box", "path"): None})) != []
    did(history, "write", wanted=b"two", outcome="unknown")
    assert history.faults(replace(seen, files={("box", "path"): b"one"})) == []
    assert history.faults(replace(seen, files={("box", "path"): b"two"})) == []


def run(**changes: Any) -> Run:
    found = Run("run", "box", {1: b"out", 2: b""}, ("EXITED",), verdict="EXITED", was_started=True)
    found.got[1] += b"out"
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def faults_of(found: Run, times: int) -> list[str]:
    history = created()
    history.runs.append(found)
    return history.faults(replace(world(box()), ran={"run": times}))


def test_a_program_runs_once_with_all_of_its_output_and_its_true_verdict() -> None:
    assert faults_of(run(), 1) == []
    assert faults_of(run(), 2) != []
    assert faults_of(run(), 0) != []
    assert faults_of(run(got={1: bytearray(b"ou"), 2: bytearray()}), 1) != []
    assert faults_of(run(verdict="SIGNALED"), 1) != []
    assert faults_of(run(verdict="", got={1: bytearray(), 2: bytearray()}), 1) != []


def test_a_program_of_which_nobody_was_told_may_not_have_run() -> None:
    assert faults_of(run(verdict="INTERNAL_ERROR", was_started=False), 0) == []
    assert faults_of(run(verdict="INTERNAL_ERROR", was_started=False), 1) != []
    assert faults_of(run(verdict="INTERNAL_ERROR"), 0) != []


def test_nothing_belongs_to_nothing() -> None:
    seen, history = world(box()), created()
    assert history.faults(replace(seen, containers={**seen.containers, "c-lost": "lost"})) != []
    assert history.faults(replace(seen, directories=seen.directories | {"lost"})) != []
    assert history.faults(replace(seen, execution_rows={"run": "lost"})) != []
    assert history.faults(replace(seen, containers={})) == ["box has a container on paper only"]
    assert history.faults(replace(seen, rows={})) != []
    twins = world(box(), box("twin", request_id="other"))
    for row in twins.rows.values():
        row["uid"] = 7  # type: ignore[index]
    assert history.faults(twins) == ["2 sandboxes have the user id 7"]
