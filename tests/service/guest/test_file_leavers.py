"""Whoever leaves in the middle of a file operation leaves nothing behind: no process, no file, no execution."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import pytest

from enclaved.core import file_jobs
from enclaved.core.cut_uploads import CutUpload, CutUploads
from enclaved.core.files import Files
from enclaved.errors import EnclaveError, NoSpace, PathNotFound, PathUnusable, SandboxLost
from tests.service.guest.laboratory import Box, Laboratory, printed, until

MIB = 1024 * 1024

Stream = Callable[[Box], AbstractAsyncContextManager[AsyncIterator[Any]]]
STREAMS: dict[str, Stream] = {
    "read": lambda box: box.lab.files.read(box.id, "tree/big"),
    "list": lambda box: box.lab.files.list(box.id, "tree", recursive=True),
    "search": lambda box: box.lab.files.search(box.id, "tree", "x", matches_max=10_000),
    "watch": lambda box: box.lab.files.watch(box.id, "tree", recursive=True),
    "read_archive": lambda box: box.lab.files.read_archive(box.id, "tree"),
}


async def fill(box: Box) -> None:
    """Makes a tree that no job is done with before its reader has read."""
    printed(
        await box.isolated(
            "import os\nos.makedirs('tree/many')\n"
            "open('tree/big', 'wb').write(bytes(8 << 20))\n"
            "for n in range(1200): open(f'tree/many/{n:04}' + 'n' * 200, 'w').write('x\\n' * 20)"
        )
    )


async def is_clean(box: Box, *names: str) -> None:
    """Waits for the end of all jobs, then looks for processes and files that should not be there."""
    await asyncio.gather(*(execution.ended for execution in list(box.lab.executions._by_id.values())))
    assert box.record.active_executions == 0
    result = await box.isolated("import os\nprint(*sorted(os.listdir()), sep='\\n')")
    assert printed(result).split() == sorted(names)


async def exists(box: Box, path: str) -> bool:
    try:
        await box.lab.files.stat(box.id, path)
    except PathNotFound:
        return False
    return True


async def held_up(*pieces: bytes) -> AsyncIterator[bytes]:
    """What a client sends that then says nothing more."""
    for piece in pieces:
        yield piece
    await asyncio.Event().wait()


async def read_on(
    stream: AbstractAsyncContextManager[AsyncIterator[Any]], meanwhile: Callable[[], object] = lambda: None
) -> None:
    """Reads to the end; after the first item something happens."""
    async with stream as items:
        async for _ in items:
            meanwhile()
            meanwhile = bool


async def left(calling: asyncio.Task[Any]) -> None:
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling


@pytest.mark.parametrize("name", STREAMS)
async def test_a_reader_that_leaves_a_stream_leaves_nothing(box: Box, name: str) -> None:
    await fill(box)
    async with STREAMS[name](box) as items:
        await anext(items)
    await is_clean(box, "tree")


@pytest.mark.parametrize("name", STREAMS)
async def test_a_sandbox_that_dies_ends_a_stream_with_its_loss(box: Box, name: str) -> None:
    await fill(box)
    with pytest.raises(SandboxLost):
        await read_on(STREAMS[name](box), lambda: os.kill(box.guest_pid(), signal.SIGKILL))


@pytest.mark.parametrize("what", ["write", "write_archive"])
async def test_a_sandbox_that_dies_ends_an_upload_with_its_loss(box: Box, what: str) -> None:
    async def dying() -> AsyncIterator[bytes]:
        yield tarfile.TarInfo("x").tobuf()
        os.kill(box.guest_pid(), signal.SIGKILL)
        while True:
            yield bytes(512)

    with pytest.raises(SandboxLost):
        await getattr(box.lab.files, what)(box.id, "d", dying())


async def test_a_client_that_leaves_an_upload_leaves_nothing(box: Box) -> None:
    writing = asyncio.create_task(box.lab.files.write(box.id, "file", held_up(bytes(MIB))))
    await until(lambda: box.record.active_executions == 1)
    await left(writing)
    await is_clean(box)


async def test_a_client_that_leaves_an_archive_leaves_whole_files_only(box: Box) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(200):
            info = tarfile.TarInfo(f"{number:03}")
            info.size = 3000
            archive.addfile(info, io.BytesIO(bytes(3000)))
    for _ in range(2):  # the second time every file is replaced
        sending = held_up(buffer.getvalue()[:600_000])
        writing = asyncio.create_task(box.lab.files.write_archive(box.id, "d", sending))
        async with asyncio.timeout(30):
            while "100" not in await listed(box, "d"):
                pass
        await left(writing)
        await is_clean(box, "d")
        sizes = printed(await box.shell("cd d; ls -A | grep -vc '^[0-9]*$'; find . -type f ! -size 3000c"))
        assert sizes == "0\n"


async def test_a_client_that_leaves_a_copy_leaves_no_part_of_it(box: Box) -> None:
    await fill(box)
    for _ in range(2):
        copying = asyncio.create_task(box.lab.files.copy(box.id, "tree", "copy", recursive=True))
        async with asyncio.timeout(30):
            while not any(name.startswith(".copied-by") for name in await listed(box)):
                assert not copying.done()
        await left(copying)
        await is_clean(box, "tree")


async def listed(box: Box, path: str = ".") -> list[str]:
    """The names in a directory; none if it is not there."""
    if not await exists(box, path):
        return []
    async with box.lab.files.list(box.id, path) as pages:
        return [os.path.basename(info.path) for page in [page async for page in pages] for info in page]


@pytest.mark.parametrize("upload_id", ["", "u"])
async def test_a_file_that_does_not_fit_says_how_much_does(lab: Laboratory, upload_id: str) -> None:
    box = await lab.box(working_dir_size_bytes=MIB, tmp_size_bytes=MIB)
    with pytest.raises(NoSpace, match=rf"a file here has at most {MIB} bytes, and \S+ has \d+ bytes free of \d+"):
        await lab.files.write(box.id, "big", pieces(bytes(2 * MIB)), upload_id=upload_id)
    await is_clean(box)


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 65536):
        yield data[start : start + 65536]


async def test_a_search_that_does_not_end_is_ended(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern can take longer than the sandbox lives; the regular expressions of Python cannot be interrupted."""
    monkeypatch.setattr(file_jobs, "QUICK_S", 0.5)
    await box.shell("printf '%064d' 0 | tr 0 a > f; echo b >> f")
    with pytest.raises(PathUnusable, match="a simpler pattern"):
        await read_on(box.lab.files.search(box.id, ".", "(a+)+$b"))
    await is_clean(box, "f")


async def test_what_takes_longer_than_a_sandbox_grants_is_ended(lab: Laboratory) -> None:
    box = await lab.box()
    box.record.spec = replace(box.record.spec, timeout_max_s=0.5)
    with pytest.raises(PathUnusable, match="it took longer than"):
        await read_on(lab.files.watch(box.id, "."))
    with pytest.raises(PathUnusable, match="it took longer than"):
        await lab.files.write(box.id, "f", held_up(b"x"))
    await is_clean(box)


async def test_a_paused_sandbox_keeps_a_stream_waiting(box: Box) -> None:
    await fill(box)
    async with box.lab.files.read(box.id, "tree/big") as content:
        size = len(await anext(content))
        await box.lab.sandboxes.pause(box.id)
        await box.lab.sandboxes.resume(box.id)
        async for piece in content:
            size += len(piece)
    assert size == 8 * MIB


# -- uploads that were cut


async def test_a_cut_upload_is_removed_when_its_time_is_over(lab: Laboratory) -> None:
    box = await lab.box()
    files = Files(
        sandboxes=lab.sandboxes,
        executions=lab.executions,
        background=lab.background,
        metrics=lab.metrics,
        upload_kept_s=0.2,
    )
    for _ in range(2):
        sending = files.write(box.id, "d/file", held_up(b"x"), create_parents=True, upload_id="u1")
        writing = asyncio.create_task(sending)
        async with asyncio.timeout(30):
            while ".ms-enclave-upload-u1" not in await listed(box, "d"):
                pass
        await left(writing)
        async with asyncio.timeout(30):
            while await listed(box, "d"):
                pass
    await files.write(box.id, "d/file", pieces(b"whole"), upload_id="u1")
    assert len(files._cut) == 0
    assert printed(await box.shell("ls -A d")) == "file\n"


async def test_what_has_arrived_is_removed_only_if_nobody_writes_to_it(box: Box) -> None:
    writing = asyncio.create_task(box.lab.files.write(box.id, "file", held_up(b"x"), upload_id="u"))
    async with asyncio.timeout(30):
        while ".ms-enclave-upload-u" not in await listed(box):
            pass
    upload = CutUpload(box.id, "file", "u")
    await box.lab.files._forget(upload)
    assert ".ms-enclave-upload-u" in await listed(box)
    await left(writing)
    await is_clean(box, ".ms-enclave-upload-u")
    await box.lab.files._forget(upload)
    await is_clean(box)


async def test_a_directory_keeps_few_cut_uploads(box: Box) -> None:
    await box.shell("for n in $(seq 10 29); do touch .ms-enclave-upload-u$n; done")
    await box.shell("touch -d '1 minute ago' .ms-enclave-upload-u29")
    await box.lab.files.write(box.id, "file", pieces(b"x"), upload_id="new")
    found = [name for name in await listed(box) if name.startswith(".ms-enclave-upload-")]
    assert len(found) == 15
    assert ".ms-enclave-upload-u29" not in found


async def test_the_daemon_remembers_few_cut_uploads(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[CutUpload] = []

    async def remove(upload: CutUpload) -> None:
        removed.append(upload)
        raise EnclaveError("the sandbox is gone")

    monkeypatch.setattr("enclaved.core.cut_uploads.MOST", 2)
    known = CutUploads(remove, box.lab.background)
    uploads = [CutUpload(box.id, "file", f"u{number}") for number in range(3)]
    for upload in uploads:
        known.keep(upload)
    await until(lambda: removed == uploads[:1])
    assert len(known) == 2
    for upload in uploads:
        known.taken_up(upload)
