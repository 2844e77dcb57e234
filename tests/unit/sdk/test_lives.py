"""What the SDK shows of the lives of sandboxes: lists by filters, histories, and every change once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from ms_enclave import errors
from ms_enclave._transports import retry
from ms_enclave._transports.base import SandboxChange
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave._transports.http import HttpTransport
from ms_enclave.sandbox import sync
from ms_enclave.sandbox.boxes import DockerSandbox
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import (
    Cause,
    DockerSandboxConfig,
    SandboxEvent,
    SandboxEventKind,
    SandboxFilter,
    SandboxStatus,
)
from ms_enclave.v1 import sandbox_service_pb2 as pb

from tests.unit.sdk.fake_daemon import FakeDaemon, Refusal, served

Kind = pb.WatchSandboxesResponse
PATIENCE_S = 60.0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    found = FakeDaemon()
    with served(found, tmp_path / "d.sock"):
        yield found


@pytest.fixture
def transport(daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GrpcTransport:
    """One that waits hardly at all between attempts."""
    monkeypatch.setattr(retry, "_REACHED_WAITS_S", (0.01,) * 6)
    monkeypatch.setattr(retry, "_UNREACHED_WAITS_S", (0.01,) * 2)
    return GrpcTransport(f"unix:{tmp_path / 'd.sock'}")


@pytest.fixture
def manager(daemon: FakeDaemon, tmp_path: Path) -> LocalSandboxManager:
    return LocalSandboxManager(address=f"unix:{tmp_path / 'd.sock'}")


def change(revision: int, kind: Any = Kind.KIND_CHANGED, **fields: Any) -> pb.WatchSandboxesResponse:
    found = Kind(kind=kind, revision=revision, cause=pb.StateChange.CAUSE_IDLE, **fields)
    if kind != Kind.KIND_BOOKMARK:
        found.sandbox.id, found.sandbox.state = "box", pb.Sandbox.STATE_DELETING
        found.time.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC))
    return found


def cut() -> Refusal:
    return Refusal(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "the daemon is shutting down")


async def watched(transport: GrpcTransport, count: int, revision: int = 0) -> list[SandboxEvent]:
    found: list[SandboxEvent] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(transport.lifecycle.watch(SandboxFilter(), revision)) as events:
        async for event in events:
            found.append(event)
            if len(found) == count:
                break
    return found


async def test_every_change_is_shown_with_its_cause(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    daemon.changes = [[change(5, Kind.KIND_BOOKMARK), change(6, matches=True), change(7, Kind.KIND_DELETED)]]
    bookmark, changed, deleted = await watched(transport, 3)
    assert bookmark == SandboxEvent(SandboxEventKind.BOOKMARK, 5)
    assert (changed.kind, changed.revision, changed.cause, changed.matches) == (
        *(SandboxEventKind.CHANGED, 6),
        *(Cause.IDLE, True),
    )
    assert changed.info is not None
    assert (changed.info.id, changed.info.status) == ("box", SandboxStatus.STOPPING)
    assert (deleted.kind, deleted.matches) == (SandboxEventKind.DELETED, False)


async def test_a_watch_goes_on_where_a_lost_connection_cut_it(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    daemon.changes = [
        [change(5, Kind.KIND_BOOKMARK), change(6), cut()],
        [cut()],
        [change(6, Kind.KIND_BOOKMARK), change(7)],
    ]
    assert [event.revision for event in await watched(transport, 4)] == [5, 6, 6, 7]
    assert [request.revision for request in daemon.asked(pb.WatchSandboxesRequest)] == [0, 6, 6]


async def test_whoever_asks_for_what_is_gone_is_told(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    daemon.changes = [[Refusal(grpc.StatusCode.OUT_OF_RANGE, "REVISION_GONE", "list the sandboxes anew")]]
    with pytest.raises(errors.RevisionGone, match="anew"):
        await watched(transport, 1, 5)


@pytest.mark.parametrize("revision", [2**70, "x"])
async def test_what_is_no_revision_is_refused(transport: GrpcTransport, revision: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match="revision"):
        await watched(transport, 1, revision)


async def test_a_filter_travels_whole(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    statuses = [SandboxStatus.STOPPING, SandboxStatus.IDLE]
    wanted = SandboxFilter({"a": "b"}, statuses, "default", moment, moment - timedelta(days=1))
    listing = await transport.lifecycle.find(wanted)
    assert (listing.sandboxes, listing.revision) == ((), 17)
    (request,) = daemon.asked(pb.ListSandboxesRequest)
    states = pb.Sandbox
    assert set(request.states) == {states.STATE_STOPPING, states.STATE_DELETING, states.STATE_PAUSED}
    assert (dict(request.labels), request.tenant) == ({"a": "b"}, "default")
    assert request.created_before.ToDatetime(UTC) == moment
    assert request.created_after.ToDatetime(UTC) == moment - timedelta(days=1)
    with pytest.raises(errors.InvalidRequest, match="busy"):
        await transport.lifecycle.find(SandboxFilter(statuses=[SandboxStatus.BUSY]))


async def test_a_list_has_all_pages(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    daemon.sandboxes = {str(number): pb.Sandbox(id=str(number)) for number in range(5)}
    found = await transport.lifecycle.find(SandboxFilter())
    assert [info.id for info in found.sandboxes] == ["0", "1", "2", "3", "4"]


async def test_a_manager_finds_and_watches_what_it_made_unless_told_otherwise(
    daemon: FakeDaemon, manager: LocalSandboxManager
) -> None:
    daemon.sandboxes["other"] = pb.Sandbox(id="other")
    sandbox_id = await manager.create_sandbox("docker")
    assert [info.id for info in (await manager.find_sandboxes()).sandboxes] == [sandbox_id]
    assert len((await manager.find_sandboxes(SandboxFilter())).sandboxes) == 2
    daemon.changes = [[change(5)]]
    async with asyncio.timeout(PATIENCE_S), aclosing(manager.watch_sandboxes()) as events:
        assert (await anext(events)).revision == 5
    (request,) = daemon.asked(pb.WatchSandboxesRequest)
    assert request.labels.keys() == {"ms-enclave/manager"}
    assert await manager.delete_sandbox(sandbox_id, wait=False)
    assert [request.wait for request in daemon.asked(pb.DeleteSandboxRequest)] == [False]


def test_the_blocking_face_has_them_too(daemon: FakeDaemon, tmp_path: Path) -> None:
    manager = sync.LocalSandboxManager(address=f"unix:{tmp_path / 'd.sock'}")
    assert manager.find_sandboxes(SandboxFilter()).revision == 17
    daemon.changes = [[change(5)]]
    events = manager.watch_sandboxes(SandboxFilter())
    assert next(events).revision == 5
    events.close()  # type: ignore[attr-defined]


async def test_a_sandbox_has_a_history_once_it_is_there(daemon: FakeDaemon, transport: GrpcTransport) -> None:
    sandbox = DockerSandbox(DockerSandboxConfig(resource_limits={"idle_timeout": 60}))
    sandbox.use(transport, {})
    with pytest.raises(errors.SandboxNotFound):
        await sandbox.history()
    await sandbox.start()
    made = pb.StateChange(state=pb.Sandbox.STATE_PAUSED, reason="why", cause=pb.StateChange.CAUSE_REQUEST)
    daemon.history = [made]
    (found,) = await sandbox.history()
    assert (found.status, found.reason, found.cause) == (SandboxStatus.IDLE, "why", Cause.REQUEST)
    (request,) = daemon.asked(pb.CreateSandboxRequest)
    assert (request.spec.idle_timeout_s, len(request.request_id)) == (60, 32)
    await sandbox.update(idle_timeout=0)
    (update,) = daemon.asked(pb.UpdateSandboxRequest)
    assert (update.HasField("idle_timeout_s"), update.idle_timeout_s) == (True, 0)


async def test_over_http_there_is_none_of_it() -> None:
    lifecycle = HttpTransport("http://127.0.0.1:1").lifecycle
    with pytest.raises(errors.NotServed):
        await lifecycle.find(SandboxFilter())
    with pytest.raises(errors.NotServed):
        await lifecycle.history("box")
    with pytest.raises(errors.NotServed):
        await anext(lifecycle.watch(SandboxFilter()))
    with pytest.raises(errors.NotServed):
        await lifecycle.update("box", SandboxChange())
