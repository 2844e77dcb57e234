"""Sandboxes without a runtime: who is admitted, listed, and cleared away after another daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from enclaved.core import leftovers as module
from enclaved.core.ownership import Ownership
from enclaved.core.record import SandboxRecord
from enclaved.errors import (
    EngineRefused,
    EngineUnavailable,
    InvalidRequest,
    LimitReached,
    NoSpace,
    PolicyDenied,
    SandboxNotFound,
    ShuttingDown,
)
from enclaved.model import SandboxRequest, SandboxState
from enclaved.runtime.base import LABEL_HMAC, LABEL_ID, LABEL_OWNER
from tests.unit.core.hall import OURS, THEIRS, Hall


@pytest.fixture
async def hall() -> AsyncIterator[Hall]:
    """See `Hall`."""
    made = Hall()
    yield made
    await made.close()


def ids(page: Any) -> list[str]:
    return [sandbox.id for sandbox in page.sandboxes]


async def test_sandboxes_are_listed_by_age_in_pages_that_meet(hall: Hall) -> None:
    names = [f"box{number}" for number in range(7)]
    await hall.make(*names)
    found, token = [], ""
    while True:
        page = hall.sandboxes.list(page_size=3, page_token=token)
        found.append(ids(page))
        if not (token := page.next_page_token):
            break
    assert found == [names[:3], names[3:6], names[6:]]


async def test_a_page_that_is_exactly_full_is_the_last(hall: Hall) -> None:
    await hall.make("a", "b")
    assert hall.sandboxes.list(page_size=2).next_page_token == ""


async def test_pages_stay_right_when_sandboxes_come_and_go_in_between(hall: Hall) -> None:
    await hall.make("a", "b", "c", "d")
    page = hall.sandboxes.list(page_size=2)
    await hall.sandboxes.delete("a")
    await hall.sandboxes.delete("c")
    await hall.make("e")
    assert ids(hall.sandboxes.list(page_size=2, page_token=page.next_page_token)) == ["d", "e"]


async def test_sandboxes_are_filtered_by_label_and_state(hall: Hall) -> None:
    await hall.make("a", "b", team="red")
    await hall.make("c", team="blue")
    await hall.sandboxes.stop("b")
    everything = hall.sandboxes.list
    assert ids(everything(labels={"team": "red"})) == ["a", "b"]
    assert ids(everything(labels={"team": "red"}, states=[SandboxState.STOPPED])) == ["b"]
    assert ids(everything(states=[SandboxState.RUNNING, SandboxState.STOPPED])) == ["a", "b", "c"]
    assert ids(everything(labels={"team": "green"})) == []
    assert ids(everything(labels={"other": ""})) == []


@pytest.mark.parametrize("token", ["x", "-", "5", "1-0", "9" * 30 + "-0", "-1-0", "\N{SUPERSCRIPT TWO}-0"])
async def test_a_token_that_is_not_of_this_listing_is_refused(hall: Hall, token: str) -> None:
    await hall.make("a", "b")
    with pytest.raises(InvalidRequest, match="page_token"):
        hall.sandboxes.list(page_token=token)


async def test_a_token_belongs_to_its_filter(hall: Hall) -> None:
    await hall.make("a", "b", team="red")
    token = hall.sandboxes.list(labels={"team": "red"}, page_size=1).next_page_token
    with pytest.raises(InvalidRequest, match="page_token"):
        hall.sandboxes.list(labels={"team": "blue"}, page_size=1, page_token=token)


@pytest.mark.parametrize("size", [-1, 1001])
async def test_a_page_has_a_size_that_can_be(hall: Hall, size: int) -> None:
    with pytest.raises(InvalidRequest, match="page_size"):
        hall.sandboxes.list(page_size=size)


async def test_there_is_a_limit_to_sandboxes() -> None:
    hall = Hall(sandboxes_max=2)
    await hall.make("a", "b")
    with pytest.raises(LimitReached, match="sandboxes_max"):
        await hall.make("c")
    await hall.sandboxes.delete("a")
    await hall.make("c")
    await hall.close()


async def test_a_limit_holds_for_those_who_come_at_once() -> None:
    hall = Hall(sandboxes_max=3)
    results = await asyncio.gather(*(hall.make(f"box{n}") for n in range(6)), return_exceptions=True)
    assert [isinstance(result, LimitReached) for result in results] == [False] * 3 + [True] * 3
    await hall.close()


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"sandbox_id": "No Id"}, InvalidRequest),
        ({"labels": {"enclaved.id": "x"}}, InvalidRequest),
        ({"request": SandboxRequest(privileged=True)}, PolicyDenied),
        ({"request": SandboxRequest(memory_limit_bytes=-1)}, InvalidRequest),
    ],
)
async def test_what_is_refused_takes_nothing(hall: Hall, keywords: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        await hall.sandboxes.create(**{"request": SandboxRequest(), **keywords})
    assert (hall.boot.uids, ids(hall.sandboxes.list())) == (set(), [])


async def test_a_sandbox_that_does_not_come_up_is_forgotten(hall: Hall) -> None:
    hall.boot.failure = EngineRefused("create a container", "no")
    with pytest.raises(EngineRefused):
        await hall.make("a")
    with pytest.raises(SandboxNotFound):
        hall.sandboxes.get("a")
    assert hall.boot.uids == set()
    assert hall.metrics.value("enclaved_sandboxes", state="initializing") == 0


async def test_a_sandbox_that_cannot_be_started_again_is_stopped_still(hall: Hall) -> None:
    await hall.make("a")
    await hall.sandboxes.stop("a")
    hall.boot.failure = EngineRefused("create a container", "no")
    with pytest.raises(EngineRefused):
        await hall.sandboxes.start("a")
    assert hall.sandboxes.get("a").state is SandboxState.STOPPED
    hall.boot.failure = None
    assert (await hall.sandboxes.start("a")).state is SandboxState.RUNNING


async def test_a_delete_that_the_engine_refuses_can_be_tried_again(hall: Hall) -> None:
    await hall.make("a")
    hall.runtime.failures.append(EngineUnavailable("docker", "the engine does not answer"))
    with pytest.raises(EngineUnavailable):
        await hall.sandboxes.delete("a")
    sandbox = hall.sandboxes.get("a")
    assert (sandbox.state, sandbox.state_reason) == (
        SandboxState.DELETING,
        "deleted on request; it cannot be removed yet: the engine does not answer",
    )
    await hall.sandboxes.delete("a")
    assert hall.runtime.containers == {}


async def test_the_active_are_those_that_use_the_engine(hall: Hall) -> None:
    await hall.make("a", "b", "c")
    await hall.sandboxes.stop("b")
    hall.sandboxes.lose(hall.sandboxes.record("c"), "it fell")
    assert hall.sandboxes.active == 1


async def test_a_sandbox_is_lost_once(hall: Hall) -> None:
    await hall.make("a")
    record = hall.sandboxes.record("a")
    hall.sandboxes.lose(record, "it fell")
    hall.sandboxes.lose(record, "it fell again")
    assert hall.sandboxes.get("a").state_reason == "it fell"
    assert hall.metrics.value("enclaved_sandboxes", state="error") == 1


async def test_tools_are_those_of_the_sandbox(hall: Hall) -> None:
    await hall.sandboxes.create(SandboxRequest(tools={"python_executor": {}}), sandbox_id="a")
    assert [tool.name for tool in hall.sandboxes.tools("a")] == ["python_executor"]
    assert len(hall.sandboxes.tools()) == 3
    with pytest.raises(SandboxNotFound):
        hall.sandboxes.tools("b")


async def test_nothing_is_admitted_after_the_close(hall: Hall) -> None:
    await hall.make("a", "b")
    await hall.sandboxes.close(5)
    assert hall.runtime.containers == {}
    with pytest.raises(ShuttingDown):
        await hall.make("c")


# -- what is written down


async def test_a_sandbox_is_written_down_before_it_is_made_and_until_it_is_gone(hall: Hall) -> None:
    seen: list[dict[str, SandboxState]] = []
    up, down = hall.boot.up, hall.boot.down

    async def look_up(record: SandboxRecord, remaining_ttl_s: float) -> None:
        seen.append(hall.written())
        await up(record, remaining_ttl_s)

    async def look_down(record: SandboxRecord) -> None:
        seen.append(hall.written())
        await down(record)

    hall.boot.up, hall.boot.down = look_up, look_down  # type: ignore[method-assign]
    await hall.make("a")
    seen.append(hall.written())
    await hall.sandboxes.delete("a")
    seen.append(hall.written())
    assert seen == [
        {"a": SandboxState.INITIALIZING},
        {"a": SandboxState.RUNNING},
        {"a": SandboxState.DELETING},
        {},
    ]


async def test_what_became_of_a_sandbox_is_written_down(hall: Hall) -> None:
    await hall.make("a", "b", "c")
    await hall.sandboxes.stop("a")
    hall.sandboxes.lose(hall.sandboxes.record("b"), "it fell")
    assert hall.written() == {"a": SandboxState.STOPPED, "b": SandboxState.ERROR, "c": SandboxState.RUNNING}
    await hall.sandboxes.start("a")
    assert hall.written()["a"] is SandboxState.RUNNING


async def test_a_sandbox_that_did_not_come_up_is_not_written_down(hall: Hall) -> None:
    hall.boot.failure = EngineRefused("create a container", "no")
    with pytest.raises(EngineRefused):
        await hall.make("a")
    assert hall.written() == {}


async def test_nothing_is_made_that_cannot_be_written_down(hall: Hall) -> None:
    database = hall.state._database
    database._connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(NoSpace, match="state"):
        await hall.make(*(f"box{number}" for number in range(100)))
    made = {record.labels[LABEL_ID] for record in await hall.runtime.list_records()}
    assert made == set(ids(hall.sandboxes.list()))
    database._connection.execute("PRAGMA max_page_count = 100000")
    database._pay()  # what was undone while there was no room is written down as soon as there is some
    assert made == set(hall.written())


# -- what others left


async def test_leftovers_of_this_state_directory_are_removed_and_nothing_else(hall: Hall, tmp_path: Path) -> None:
    await hall.make("living")
    living = hall.sandboxes.record("living").container_id
    assert living is not None
    foreign = {
        "another daemon's": THEIRS.labels("b", 2),
        "imitates our owner": {**THEIRS.labels("c", 3), LABEL_OWNER: OURS.owner},
        "imitates our labels": {**OURS.labels("d", 4), LABEL_ID: "e"},
        "has a strange signature": {**OURS.labels("d", 4), LABEL_HMAC: "\N{SNOWMAN}"},
        "has only an id": {LABEL_ID: "f"},
    }
    hall.runtime.containers.update(foreign, leftover=OURS.labels("a", 1))
    await hall.leftovers.clear(tmp_path, None)
    assert set(hall.runtime.containers) == {living, *foreign}
    assert hall.boot.old_directories_removed == 1


async def test_an_engine_that_does_not_answer_is_waited_for(
    hall: Hall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    hall.runtime.containers["leftover"] = OURS.labels("a", 1)
    hall.runtime.failures = [EngineUnavailable("docker", "it sleeps") for _ in range(3)]
    await hall.leftovers.clear(tmp_path, None)
    assert hall.runtime.containers == {}
    assert hall.metrics.value("enclaved_engine_up") == 1


async def test_directories_of_dead_embedded_daemons_go_with_their_containers(hall: Hall, tmp_path: Path) -> None:
    state_dir = tmp_path / "4194305-1" / "state"  # a process that cannot be
    state_dir.mkdir(parents=True)
    (state_dir / "lock").touch()
    gone = Ownership.of(state_dir)
    hall.runtime.containers["orphan"] = gone.labels("a", 1)
    await hall.leftovers.clear(tmp_path / "own" / "state", tmp_path)
    assert hall.runtime.containers == {}
    assert list(tmp_path.iterdir()) == []
