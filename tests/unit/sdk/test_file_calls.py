"""Calls to files whose answers, or whose connections, are lost."""

# ruff: noqa: N802  (the methods of generated servicers are named by the contract)
from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from ms_enclave import errors
from ms_enclave._transports import retry
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave.sandbox._landing import save
from ms_enclave.sandbox._received import anew, whole
from ms_enclave.v1 import file_service_pb2 as pb
from ms_enclave.v1 import file_service_pb2_grpc as file_grpc

from tests.unit.sdk.fake_daemon import Refusal, guest_unavailable, refuse

LOST = "the connection was lost"
SHUTTING_DOWN = Refusal(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "the daemon is shutting down")
ENGINE_UNAVAILABLE = Refusal(grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE", "no engine")


class Tree(file_grpc.FileServiceServicer):
    """A sandbox of files: their sizes by their paths. ``first`` is what becomes of the next change."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.first: list[str | Refusal] = []
        self.cut = asyncio.Event()
        """Set when an upload was cut."""
        self.openings: list[pb.OpenFile] = []
        self.reads: list[tuple[int, int]] = []

    async def StatFile(self, request: Any, context: Any) -> Any:
        return pb.StatFileResponse(file=await self._info(request.path, context))

    async def MoveFile(self, request: Any, context: Any) -> Any:
        async def move() -> None:
            await self._info(request.path, context)
            self.sizes[request.target_path] = self.sizes.pop(request.path)

        await self._done(move, context)
        return pb.MoveFileResponse()

    async def CopyFile(self, request: Any, context: Any) -> Any:
        async def copy() -> None:
            await self._info(request.path, context)
            if request.target_path in self.sizes:
                await refuse(context, Refusal(grpc.StatusCode.ALREADY_EXISTS, "FILE_EXISTS", "is there"))
            self.sizes[request.target_path] = self.sizes[request.path]

        await self._done(copy, context)
        return pb.CopyFileResponse()

    async def RemoveFile(self, request: Any, context: Any) -> Any:
        async def remove() -> None:
            await self._info(request.path, context)
            del self.sizes[request.path]

        await self._done(remove, context)
        return pb.RemoveFileResponse()

    async def WriteFile(self, requests: Any, context: Any) -> Any:
        size = 0
        async for request in requests:
            if request.HasField("open"):
                self.openings.append(request.open)
            else:
                size += len(request.data)
                if self.first:
                    self.first.pop()
                    self.cut.set()
                    await context.abort(grpc.StatusCode.UNAVAILABLE, LOST)
        return pb.WriteFileResponse(size_bytes=size)

    async def ReadFile(self, request: Any, context: Any) -> None:
        self.reads.append((request.offset, request.length))
        data = bytes(range(10))[request.offset :]
        data = data[: request.length] if request.length else data
        for number in range(0, len(data), 4):
            await context.write(pb.ReadFileResponse(data=data[number : number + 4]))
            if self.first:
                self.first.pop()
                await context.abort(grpc.StatusCode.UNAVAILABLE, LOST)

    async def _info(self, path: str, context: Any) -> pb.FileInfo:
        if path not in self.sizes:
            await refuse(context, Refusal(grpc.StatusCode.NOT_FOUND, "FILE_NOT_FOUND", f"no such file: {path}"))
        return pb.FileInfo(path=path, type=pb.FILE_TYPE_REGULAR, size_bytes=self.sizes[path])

    async def _done(self, change: Any, context: Any) -> None:
        what = self.first.pop() if self.first else ""
        if isinstance(what, Refusal):
            await refuse(context, what)
        await change()
        if what == LOST:
            await context.abort(grpc.StatusCode.UNAVAILABLE, LOST)


@pytest.fixture
async def tree(tmp_path: Path) -> AsyncIterator[Tree]:
    server = grpc.aio.server()
    made = Tree()
    file_grpc.add_FileServiceServicer_to_server(made, server)
    server.add_insecure_port(f"unix:{tmp_path}/d.sock")
    await server.start()
    yield made
    await server.stop(None)


@pytest.fixture
def files(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(retry, "_REACHED_WAITS_S", (0.01,) * 6)
    monkeypatch.setattr(retry, "_UNREACHED_WAITS_S", (0.01,) * 2)
    return GrpcTransport(f"unix:{tmp_path}/d.sock").files


# -- changes whose answers are lost


async def test_a_change_whose_answer_was_lost_is_done(tree: Tree, files: Any) -> None:
    tree.sizes = {"a": 1}
    for call in (
        lambda: files.copy("box", "a", "b", replace=False, recursive=False),
        lambda: files.move("box", "a", "c", replace=False),
        lambda: files.remove("box", "b", recursive=False, missing_ok=False),
    ):
        tree.first = [LOST]
        await call()
    assert tree.sizes == {"c": 1}


@pytest.mark.parametrize("refusal", [SHUTTING_DOWN, ENGINE_UNAVAILABLE, None])
async def test_what_no_attempt_can_have_done_is_not_called_done(tree: Tree, files: Any, refusal: Any) -> None:
    tree.sizes = {"a": 1, "b": 1}
    tree.first = [refusal or guest_unavailable()]
    with pytest.raises(errors.PathNotFound):  # nothing was moved to b, though it is there
        await files.move("box", "typo", "new", replace=True)
    tree.sizes["b"] = 2
    tree.first = [refusal or guest_unavailable()]
    with pytest.raises(errors.PathExists):
        await files.copy("box", "a", "b", replace=False, recursive=False)
    if refusal is not None:
        tree.first = [refusal]
        with pytest.raises(errors.PathNotFound):
            await files.remove("box", "typo", recursive=False, missing_ok=False)
    assert tree.sizes == {"a": 1, "b": 2}


async def test_a_lost_answer_does_not_make_an_older_file_a_copy(tree: Tree, files: Any) -> None:
    tree.sizes = {"a": 1, "b": 2}
    calls = files._calls
    waits: list[errors.EnclaveError] = []
    wait = calls.wait

    async def lost(left: retry.Retries, error: errors.EnclaveError) -> None:
        waits.append(error)
        left.may_be_done = True
        await wait(left, error)

    calls.wait = lost
    tree.first = [SHUTTING_DOWN]
    with pytest.raises(errors.PathExists):
        await files.copy("box", "a", "b", replace=False, recursive=False)
    tree.first = [SHUTTING_DOWN]
    with pytest.raises(errors.PathNotFound):
        await files.move("box", "typo", "missing", replace=False)
    assert len(waits) == 2


async def test_a_daemon_that_nobody_could_connect_to_has_done_nothing(tmp_path: Path) -> None:
    path = tmp_path / "none.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))  # nobody listens
        calls = GrpcTransport(f"unix:{path}").files._calls
        retries = calls.retries()
        with pytest.raises(errors.DaemonUnavailable):
            await calls.unary(lambda s: s.files.StatFile, pb.StatFileRequest(), timeout_s=5.0, retries=retries)
    assert (retries.used, retries.may_be_done) == (True, False)


# -- content


@pytest.mark.parametrize("upload_id", ["", "one"])
async def test_an_upload_without_an_id_begins_anew(tree: Tree, files: Any, upload_id: str) -> None:
    begun: list[int] = []
    data = bytes(100)

    async def content(offset: int) -> AsyncGenerator[bytes, None]:
        begun.append(offset)
        yield data[offset:50] if offset < 50 else b""
        if len(begun) == 1:
            await asyncio.wait_for(tree.cut.wait(), 30)
        yield data[max(offset, 50) :]

    tree.first = [LOST]
    size = await files.upload("box", "f", content, mode=0o644, upload_id=upload_id)
    assert [opening.offset for opening in tree.openings] == begun
    if upload_id:
        assert begun[1] >= 50
    else:
        assert begun == [0, 0]
        assert size == len(data)


async def test_a_file_is_read_on_where_the_connection_was_lost(tree: Tree, files: Any) -> None:
    tree.sizes = {"f": 10}
    seen = await files.stat("box", "f")
    for length, wanted in ((0, bytes(range(10))), (8, bytes(range(8))), (4, bytes(range(4)))):
        tree.reads.clear()
        tree.first = [LOST]
        found = [piece async for piece in files.read("box", "f", length=length, seen=seen)]
        assert b"".join(found) == wanted
        assert tree.reads == [(0, length), (4, length and length - 4)][: 1 if length == 4 else 2]
    tree.first = [LOST]
    with pytest.raises(errors.DaemonUnavailable):  # nobody knows whether it is the same file
        [piece async for piece in files.read("box", "f")]
    tree.first = [LOST]
    tree.sizes["f"] = 11
    with pytest.raises(errors.PathUnusable, match="changed while it was read"):
        [piece async for piece in files.read("box", "f", seen=seen)]


async def test_what_is_read_as_a_whole_is_read_anew(tree: Tree, files: Any) -> None:
    tree.first = [LOST]
    assert await whole(lambda: files.read("box", "f"), 10, "too much") == bytes(range(10))
    assert tree.reads == [(0, 0), (0, 0)]
    tree.first = [LOST] * 3
    with pytest.raises(errors.DaemonUnavailable):
        await whole(lambda: files.read("box", "f"), 10, "too much")
    with pytest.raises(errors.InvalidRequest, match="too much"):
        await whole(lambda: files.read("box", "f"), 9, "too much")


async def test_what_goes_into_a_file_as_a_whole_begins_anew(tree: Tree, files: Any, tmp_path: Path) -> None:
    async def into(began: Callable[[int], object]) -> bytes:
        await save(files.read("box", "f"), tmp_path / "f", began)
        return b""

    tree.first = [LOST]
    await anew(into)
    assert (tmp_path / "f").read_bytes() == bytes(range(10))
    assert tree.reads == [(0, 0), (0, 0)]
