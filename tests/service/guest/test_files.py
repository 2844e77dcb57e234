"""Files of a sandbox: streamed in and out, and through the file_operation tool."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from enclaved.errors import InvalidRequest, NoSpace, PathNotFound, PathUnusable, SandboxNotFound, WrongState
from enclaved.model import Verdict
from tests.service.guest.laboratory import Box, Laboratory, ended, printed, sha256, text

MIB = 1024 * 1024

ODD_NAMES = [
    "with spaces and 'quotes\"",
    "--help",
    "new\nline",
    "tab\tand\x1b[31mred",
    "\N{SNOWMAN}\N{SNAKE}",
    "e\u0301",
    "*?[a-z]",
    "$HOME`id`",
    "not utf-8 \udcff\udcfe",
    "a" * 255,
    "\N{LATIN SMALL LETTER E WITH ACUTE}" * 127,
    ".hidden",
    "trailing.",
    "CON",
]


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def write(box: Box, path: str, *pieces: bytes, mode: int = 0o644, create_parents: bool = False) -> int:
    return await box.lab.files.write(box.id, path, chunks(*pieces), mode=mode, create_parents=create_parents)


async def read(box: Box, path: str, *, offset: int = 0, length: int = 0) -> bytes:
    async with box.lab.files.read(box.id, path, offset=offset, length=length) as content:
        return b"".join([piece async for piece in content])


async def file_operation(box: Box, operation: str, path: str, **parameters: str) -> str:
    return printed(await box.run("file_operation", {"operation": operation, "file_path": path, **parameters}))


async def refusal(box: Box, operation: str, path: str, **parameters: str) -> str:
    result = await box.run("file_operation", {"operation": operation, "file_path": path, **parameters})
    assert ended(result).verdict is Verdict.EXCEPTION
    assert text(result.stderr).startswith(f"{path}: ")
    return ended(result).message


# -- streams


async def test_what_was_written_is_read_back_by_files_and_by_programs(box: Box) -> None:
    data = bytes(range(256)) * 8192
    assert await write(box, "data.bin", *(data[i : i + 100_000] for i in range(0, len(data), 100_000))) == len(data)
    assert sha256(await read(box, "data.bin")) == sha256(data)
    assert printed(await box.shell("sha256sum < data.bin")).split()[0] == sha256(data)
    await box.shell("head -c 3000000 /dev/urandom | tee random | sha256sum > sum")
    assert sha256(await read(box, "random")) == printed(await box.shell("cut -d' ' -f1 sum")).strip()


async def test_an_empty_file_is_a_file(box: Box) -> None:
    assert await write(box, "empty") == 0
    assert await read(box, "empty") == b""


@pytest.mark.parametrize(
    ("offset", "length", "found"), [(0, 0, b"hello"), (1, 3, b"ell"), (3, 100, b"lo"), (5, 0, b""), (50, 5, b"")]
)
async def test_a_part_of_a_file_can_be_read(box: Box, offset: int, length: int, found: bytes) -> None:
    await write(box, "file", b"hello")
    assert await read(box, "file", offset=offset, length=length) == found


async def test_a_file_has_the_mode_that_was_asked_for_and_belongs_to_the_user(box: Box) -> None:
    await write(box, "script", b"#!/bin/sh\necho ran\n", mode=0o755)
    await write(box, "plain", b"")
    uid = printed(await box.shell("id -u"))
    assert printed(await box.shell("./script; stat -c '%a %u' script plain")) == f"ran\n755 {uid}644 {uid}"


async def test_a_file_is_replaced_as_a_whole(box: Box) -> None:
    await write(box, "file", b"old content that is longer")
    held = await box.open_shell("exec 5< file; echo open; read line; cat <&5", stdin=True)
    async with held.attach(observe=True) as events:
        async for event in events:
            if getattr(event, "data", b"") == b"open\n":
                break
    await write(box, "file", b"new")
    assert await read(box, "file") == b"new"
    await held.write_stdin(b"\n")
    assert printed(await held.collect()) == "open\nold content that is longer"


async def test_parents_are_made_where_that_was_asked_for(box: Box) -> None:
    with pytest.raises(PathNotFound):
        await write(box, "a/b/c", b"x")
    await write(box, "a/b/c", b"x", create_parents=True)
    assert await read(box, "a/b/c") == b"x"


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_odd_names_are_names(box: Box, name: str) -> None:
    await write(box, name, b"content")
    assert await read(box, name) == b"content"
    assert printed(await box.isolated(f"import os; print(os.listdir() == [{name!r}])")) == "True\n"
    await write(box, name, b"again")
    assert await read(box, f"./{name}") == b"again"


@pytest.mark.parametrize("name", [name for name in ODD_NAMES if "\udcff" not in name])
async def test_the_file_tool_takes_odd_names(box: Box, name: str) -> None:
    assert await file_operation(box, "write", name, content="x") == f"File written successfully: {name}"
    assert await file_operation(box, "exists", name) == "exists"
    assert name in await file_operation(box, "list", ".")
    assert await file_operation(box, "read", name) == "x"
    assert await file_operation(box, "delete", name) == f"Successfully deleted: {name}"
    assert await file_operation(box, "exists", name) == "does not exist"


UP = "../" * 20  # the working directory is somewhere below /tmp here
OUTSIDE = [
    "/etc/passwd",
    f"{UP}escape",
    f"a/{UP}escape",
    "/",
    "/proc/self/status",
    "/dev/null",
    "link/passwd",
    "/tmp/../etc/x",
]


@pytest.mark.parametrize("path", OUTSIDE)
async def test_a_path_outside_is_refused_by_name(box: Box, path: str) -> None:
    await box.shell("ln -s /etc link")
    with pytest.raises(InvalidRequest, match=r"path: the path is outside the sandbox's directories \(.* and /tmp\)"):
        await read(box, path)
    with pytest.raises(InvalidRequest, match="outside"):
        await write(box, path, b"x")
    for operation in ("read", "list", "exists", "delete"):
        assert "outside" in await refusal(box, operation, path)
    assert "outside" in await refusal(box, "write", path, content="x")


async def test_links_inside_work_and_links_out_are_deleted_as_links(box: Box) -> None:
    await box.shell(
        "mkdir d; echo inside > d/file; ln -s d/file link; ln -s /etc/passwd out; ln -s loop loop; ln -s no dangling"
    )
    assert await read(box, "link") == b"inside\n"
    await write(box, "link", b"through")
    assert await read(box, "d/file") == b"through"
    assert printed(await box.shell("readlink link")) == "d/file\n"
    with pytest.raises(InvalidRequest):
        await read(box, "out")
    for name in ("out", "loop", "dangling"):
        assert await file_operation(box, "delete", name) == f"Successfully deleted: {name}"
    assert printed(await box.shell("ls; test -e /etc/passwd")) == "d\nlink\n"


@pytest.mark.parametrize(
    ("setup", "path", "why"),
    [
        ("mkdir d", "d", "Is a directory"),
        ("mkfifo pipe", "pipe", "not a regular file"),
        ("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'", "sock", "not a regular file"),
        ("ln -s loop loop", "loop", "not a regular file"),
        ("echo > file", "file/below", "Not a directory"),
        ("true", "x" * 256, "File name too long"),
        ("true", "x/" * 2000 + "x", "no such file"),
    ],
    ids=lambda value: value[:20],
)
async def test_what_is_no_regular_file_is_refused_at_once(box: Box, setup: str, path: str, why: str) -> None:
    assert printed(await box.shell(setup)) == ""
    with pytest.raises((PathUnusable, PathNotFound), match=why):
        await read(box, path)
    with pytest.raises((PathUnusable, PathNotFound), match=why):
        await write(box, path, b"x")


async def test_a_file_that_the_user_may_not_read_is_refused(box: Box) -> None:
    await write(box, "secret", b"x", mode=0o200)
    with pytest.raises(PathUnusable, match="Permission denied"):
        await read(box, "secret")
    await box.shell("mkdir closed; touch closed/file; chmod 0 closed")
    with pytest.raises(PathUnusable, match="Permission denied"):
        await read(box, "closed/file")


@pytest.mark.parametrize("path", ["", "  ", "nul\0", "x" * 4097])
async def test_what_cannot_be_a_path_is_refused_before_anything_is_done(box: Box, path: str) -> None:
    with pytest.raises(InvalidRequest):
        await read(box, path)
    with pytest.raises(InvalidRequest):
        await write(box, path, b"x")
    assert box.record.active_executions == 0


async def test_bad_numbers_are_refused_by_name(box: Box) -> None:
    for keywords in ({"offset": -1}, {"length": -1}):
        with pytest.raises(InvalidRequest, match="must not be negative"):
            await read(box, "file", **keywords)
    for mode in (-1, 0o1000, 0o4755):
        with pytest.raises(InvalidRequest, match=r"open\.mode"):
            await write(box, "file", b"x", mode=mode)
    await write(box, "file", b"x")
    assert await read(box, "file", offset=2**62) == b""


async def test_files_need_a_running_sandbox(lab: Laboratory) -> None:
    box = await lab.box()
    await lab.sandboxes.stop(box.id)
    with pytest.raises(WrongState):
        await read(box, "file")
    with pytest.raises(WrongState):
        await write(box, "file", b"x")
    with pytest.raises(SandboxNotFound):
        async with lab.files.read("nobody", "file"):
            pass


class BrokenUpload(Exception):
    """The client went away."""


async def test_a_broken_upload_leaves_nothing_and_what_was_there(box: Box) -> None:
    await write(box, "file", b"before")

    async def breaks() -> AsyncIterator[bytes]:
        yield bytes(300_000)
        raise BrokenUpload

    for path in ("file", "new"):
        with pytest.raises(BrokenUpload):
            await box.lab.files.write(box.id, path, breaks())
    assert printed(await box.shell("ls -A; cat file")) == "file\nbefore"


async def test_an_upload_whose_caller_is_cancelled_leaves_nothing(box: Box) -> None:
    waiting, never = asyncio.Event(), asyncio.Event()

    async def stalls() -> AsyncIterator[bytes]:
        yield bytes(300_000)
        waiting.set()
        await never.wait()

    writing = asyncio.create_task(box.lab.files.write(box.id, "file", stalls()))
    await waiting.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert printed(await box.shell("ls -A")) == ""


async def test_a_download_that_is_broken_off_costs_nothing(box: Box) -> None:
    await box.shell("head -c 5000000 /dev/zero > file")
    async with box.lab.files.read(box.id, "file") as content:
        async for _ in content:
            break
    await asyncio.gather(*(execution.ended for execution in box.lab.executions._by_id.values()))
    assert box.record.active_executions == 0


async def test_an_upload_to_a_path_that_cannot_be_ends_early(box: Box) -> None:
    pieces = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pieces
        while True:
            pieces += 1
            yield bytes(10_000)

    with pytest.raises(PathNotFound):
        await box.lab.files.write(box.id, "missing/file", endless())
    assert pieces < 1000


async def test_a_file_larger_than_the_limit_is_no_space(lab: Laboratory) -> None:
    box = await lab.box(working_dir_size_bytes=MIB, tmp_size_bytes=MIB)
    with pytest.raises(NoSpace, match="file system is full"):
        await write(box, "file", *([bytes(100_000)] * 20))
    assert printed(await box.shell("ls -A")) == ""


async def test_user_code_that_disturbs_a_file_job_cannot_make_it_lie(box: Box) -> None:
    """The process that handles the file has the user's rights and no more; killed, it has not succeeded."""
    await box.shell("head -c 8000000 /dev/zero > file")
    killer = await box.open_shell("while :; do kill -9 -1; done")
    try:
        for _ in range(5):
            with contextlib.suppress(PathUnusable):
                assert len(await read(box, "file")) == 8_000_000
    finally:
        killer.cancel("the test")
        await killer.ended


# -- the tool


async def test_the_file_tool_does_what_is_documented(box: Box) -> None:
    assert await file_operation(box, "write", "d/e/f.txt", content="hello") == "File written successfully: d/e/f.txt"
    assert await file_operation(box, "read", "d/e/f.txt") == "hello"
    assert await file_operation(box, "exists", "d/e") == "exists"
    listing = await file_operation(box, "list", "d")
    assert listing.splitlines()[0].startswith("total ")
    assert [line.split()[-1] for line in listing.splitlines()[1:]] == [".", "..", "e"]
    assert listing.splitlines()[3].startswith("drwx")
    assert (await file_operation(box, "list", "d/e/f.txt")).endswith(" d/e/f.txt\n")
    assert await file_operation(box, "delete", "d") == "Successfully deleted: d"
    assert await file_operation(box, "delete", "d") == "Successfully deleted: d"
    assert await file_operation(box, "exists", "d/e/f.txt") == "does not exist"
    assert await refusal(box, "read", "d/e/f.txt") == "FileNotFoundError: No such file or directory"
    assert await refusal(box, "list", "d") == "FileNotFoundError: No such file or directory"


async def test_the_file_tool_transcodes(box: Box) -> None:
    await file_operation(box, "write", "latin", content="h\xe9llo", encoding="latin-1")
    assert await read(box, "latin") == b"h\xe9llo"
    assert await file_operation(box, "read", "latin", encoding="latin-1") == "h\xe9llo"
    await file_operation(box, "write", "wide", content="\N{SNAKE}" * 50_000, encoding="utf-16")
    assert await file_operation(box, "read", "wide", encoding="utf-16") == "\N{SNAKE}" * 50_000
    assert "codec can't decode" in await refusal(box, "read", "latin", encoding="ascii")
    assert "codec can't encode" in await refusal(box, "write", "latin", content="\N{SNAKE}", encoding="latin-1")
    assert await read(box, "latin") == b"h\xe9llo"


async def test_the_file_tool_deletes_trees_without_following_links(box: Box) -> None:
    await box.shell(
        "mkdir -p keep tree/a/b; touch keep/file tree/a/b/file; ln -s ../../keep tree/a/link; mkfifo tree/p"
    )
    assert await file_operation(box, "delete", "tree/") == "Successfully deleted: tree/"
    assert printed(await box.shell("find . -mindepth 1 | sort")) == "./keep\n./keep/file\n"


@pytest.mark.parametrize("path", [".", "./", "d/..", "d/../", UP, f"{UP}..", f"d/{UP}tmp", "/tmp", "/tmp/", ""])
async def test_the_sandboxs_directories_themselves_cannot_be_deleted(box: Box, path: str) -> None:
    await box.shell("mkdir d; touch d/file")
    result = await box.run("file_operation", {"operation": "delete", "file_path": path or box_directory(box)})
    assert ended(result).verdict is Verdict.EXCEPTION
    assert "cannot be deleted" in ended(result).message or "outside" in ended(result).message
    assert printed(await box.shell("find . -mindepth 1 | sort")) == "./d\n./d/file\n"


def box_directory(box: Box) -> str:
    assert box.record.container_id is not None
    return str(box.lab.runtime._containers[box.record.container_id].working_dir)


async def test_listing_shows_what_ls_shows(box: Box) -> None:
    await box.shell("touch -t 202401020304 file; chmod 640 file; ln -s target link; mkfifo pipe")
    rows = {line.split()[8]: line for line in (await file_operation(box, "list", ".")).splitlines()[1:]}
    assert rows["file"].startswith("-rw-r-----   1 ")
    assert " Jan  2 03:04 file" in rows["file"]
    assert rows["link"].endswith(" link -> target")
    assert rows["link"].startswith("lrwxrwxrwx")
    assert rows["pipe"].startswith("prw")
