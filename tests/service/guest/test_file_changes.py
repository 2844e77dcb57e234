"""Files of a sandbox as they lie in directories: looking, listing, changing, searching and watching."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from enclaved.errors import InvalidRequest, NoSpace, PathExists, PathNotFound, PathUnusable, UploadGap
from enclaved.model import ChangeKind, FileChange, FileType, SearchMatch
from enclaved.services._convert.files import file_info
from tests.service.guest.laboratory import PATIENCE_S, Box, Laboratory, printed, until

MIB = 1024 * 1024


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def read(box: Box, path: str) -> bytes:
    async with box.lab.files.read(box.id, path) as content:
        return b"".join([piece async for piece in content])


async def names(box: Box, path: str = ".", *, recursive: bool = False, glob: str = "") -> list[str]:
    """The paths below a directory, without the directory."""
    top = (await box.lab.files.stat(box.id, path)).path
    async with box.lab.files.list(box.id, path, recursive=recursive, glob=glob) as pages:
        return [info.path.removeprefix(f"{top}/") for page in [page async for page in pages] for info in page]


async def search(box: Box, path: str, pattern: str, **how: object) -> list[SearchMatch | None]:
    async with box.lab.files.search(box.id, path, pattern, **how) as pages:  # type: ignore[arg-type]
        return [match for page in [page async for page in pages] for match in page]


# -- looking


async def test_a_path_is_shown_as_what_it_is(box: Box) -> None:
    await box.shell("printf hello > f; chmod 640 f; touch -d @1000.5 f; mkdir d; ln -s nowhere l; mkfifo p")
    found = await box.lab.files.stat(box.id, "f")
    assert (found.type, found.size_bytes, found.mode, found.modified_ns) == (
        FileType.REGULAR,
        5,
        0o640,
        1_000_500_000_000,
    )
    assert str(found.uid) == printed(await box.shell("id -u")).strip()
    assert found.path == printed(await box.shell("realpath f")).strip()
    assert (await box.lab.files.stat(box.id, "d")).type is FileType.DIRECTORY
    assert (await box.lab.files.stat(box.id, ".")).type is FileType.DIRECTORY
    assert (await box.lab.files.stat(box.id, "/tmp")).type is FileType.DIRECTORY
    assert (await box.lab.files.stat(box.id, "p")).type is FileType.OTHER
    link = await box.lab.files.stat(box.id, "l")
    assert (link.type, link.link_target) == (FileType.SYMLINK, "nowhere")
    for missing in ("no", "no/deeper", "f2"):
        with pytest.raises(PathNotFound):
            await box.lab.files.stat(box.id, missing)


async def test_a_listing_is_sorted_and_goes_deep_only_if_asked(box: Box) -> None:
    await box.shell("mkdir -p b/c a; touch b/c/x.py b/y.txt a/z.py top; ln -s /etc b/out; chmod 0 a")
    assert await names(box) == ["a", "b", "top"]
    assert await names(box, recursive=True) == ["a", "b", "b/c", "b/c/x.py", "b/out", "b/y.txt", "top"]
    assert await names(box, "b") == ["c", "out", "y.txt"]
    assert await names(box, recursive=True, glob="**/*.py") == ["b/c/x.py"]
    assert await names(box, recursive=True, glob="b/?.txt") == ["b/y.txt"]
    assert await names(box, recursive=True, glob="*") == ["a", "b", "top"]
    with pytest.raises(PathUnusable, match="Not a directory"):
        await names(box, "top")


async def test_a_long_listing_comes_in_pages(box: Box) -> None:
    await box.isolated("for n in range(1000): open(f'f{n:04}', 'w')")
    async with box.lab.files.list(box.id, ".") as pages:
        sizes = [len(page) async for page in pages]
    assert (sum(sizes), max(sizes)) == (1000, 256)


async def test_a_name_that_is_not_utf_8_is_shown_with_marks(box: Box) -> None:
    await box.isolated(r"open(b'a\xffb', 'w')")
    assert await names(box) == ["a\N{REPLACEMENT CHARACTER}b"]


# -- changing


async def test_a_directory_is_made_once(box: Box) -> None:
    files = box.lab.files
    with pytest.raises(PathNotFound):
        await files.make_directory(box.id, "a/b")
    await files.make_directory(box.id, "a/b", create_parents=True, mode=0o700)
    await files.make_directory(box.id, "a/b")
    assert (await files.stat(box.id, "a/b")).mode == 0o700
    await box.shell("touch f")
    with pytest.raises(PathExists):
        await files.make_directory(box.id, "f")


async def test_moving_replaces_only_what_may_be_replaced(box: Box) -> None:
    files = box.lab.files
    await box.shell("echo 1 > a; echo 2 > b; mkdir -p d/e")
    with pytest.raises(PathExists):
        await files.move(box.id, "a", "b")
    await files.move(box.id, "a", "b", replace=True)
    assert await read(box, "b") == b"1\n"
    await files.move(box.id, "b", "d/e/b")
    await files.move(box.id, "d", "moved")
    assert await names(box, recursive=True) == ["moved", "moved/e", "moved/e/b"]
    with pytest.raises(PathExists):
        await files.move(box.id, "moved/e/b", "moved", replace=True)
    with pytest.raises(PathUnusable, match="into itself"):
        await files.move(box.id, "moved", "moved/e/x")
    with pytest.raises(PathNotFound, match="nowhere"):
        await files.move(box.id, "moved/e/b", "nowhere/x")
    with pytest.raises(PathNotFound, match="missing"):
        await files.move(box.id, "missing", "x")
    with pytest.raises(InvalidRequest, match="outside"):
        await files.move(box.id, "moved", "/etc/x")


async def test_a_copy_is_whole_or_not_there(box: Box) -> None:
    files = box.lab.files
    await box.shell("mkdir -p d/e; echo 1 > d/f; echo x > d/e/g; chmod 755 d/f; ln -s f d/l; chmod 700 d/e")
    with pytest.raises(PathUnusable, match="recursive"):
        await files.copy(box.id, "d", "c")
    await files.copy(box.id, "d", "c", recursive=True)
    assert printed(await box.shell("cd c; find . -printf '%p %m %l\\n' | sort")) == printed(
        await box.shell("cd d; find . -printf '%p %m %l\\n' | sort")
    )
    await files.copy(box.id, "d/f", "c/f2")
    with pytest.raises(PathExists):
        await files.copy(box.id, "d/f", "c/e/g")
    await files.copy(box.id, "d/f", "c/e/g", replace=True)
    assert await read(box, "c/e/g") == b"1\n"
    await box.shell("mkfifo d/pipe")
    with pytest.raises(PathUnusable, match="pipe"):
        await files.copy(box.id, "d", "c2", recursive=True)
    assert await names(box) == ["c", "d"]


async def test_removing_a_directory_with_its_content_must_be_said(box: Box) -> None:
    files = box.lab.files
    await box.shell("mkdir -p d/e outside; touch d/f d/e/g outside/kept; ln -s ../outside d/l; mkdir empty")
    with pytest.raises(PathUnusable, match="not empty"):
        await files.remove(box.id, "d")
    await files.remove(box.id, "empty")
    await files.remove(box.id, "d", recursive=True)
    with pytest.raises(PathNotFound):
        await files.remove(box.id, "d", recursive=True)
    await files.remove(box.id, "d", missing_ok=True)
    assert await names(box, recursive=True) == ["outside", "outside/kept"]


async def test_a_tree_deeper_than_any_path_is_removed(box: Box) -> None:
    deep = "import os\nfor n in range(1500): os.mkdir('d' * 50); os.chdir('d' * 50)\nopen('f', 'w')"
    printed(await box.isolated(deep))
    await box.lab.files.remove(box.id, "d" * 50, recursive=True)
    assert await names(box) == []


async def test_user_code_that_swaps_directories_for_links_leads_nothing_out(box: Box) -> None:
    """The walk holds what it has seen, so a link that appears meanwhile is an error or is not met."""
    (box.lab.state_dir / "x").mkdir(mode=0o777)
    await box.shell("mkdir d; mkdir other; echo inside > d/f; echo inside > other/f")
    racing = await box.open_shell(
        "while :; do ln -s /etc link; mv -T link d2 2>/dev/null; rm -f d2; mv d d2; ln -s /etc d; rm d; mv d2 d; done"
    )
    try:
        for _ in range(60):
            try:
                assert await read(box, "d/f") == b"inside\n"
                await box.lab.files.write(box.id, "d/passwd", chunks(b"x"))
                await box.lab.files.remove(box.id, "d/passwd", missing_ok=True)
            except (PathNotFound, PathUnusable, InvalidRequest):
                continue
    finally:
        racing.cancel("the test")
    await racing.ended


async def test_clients_that_change_the_same_files_at_once_see_whole_ones(box: Box) -> None:
    files = box.lab.files
    contents = [bytes([number]) * 200_000 for number in range(6)]

    async def replaces(content: bytes) -> None:
        for _ in range(3):
            await files.write(box.id, "shared", chunks(content[:100_000], content[100_000:]))

    async def reads() -> None:
        for _ in range(6):
            assert await read(box, "shared") in contents

    async def makes() -> bool:
        try:
            await files.move(box.id, "one", "two")
        except (PathNotFound, PathExists):
            return False
        return True

    await files.write(box.id, "shared", chunks(contents[0]))
    await asyncio.gather(*(replaces(content) for content in contents), *(reads() for _ in range(3)))
    await files.write(box.id, "one", chunks(b"1"))
    assert sum(await asyncio.gather(*(makes() for _ in range(6)))) == 1
    assert await names(box) == ["shared", "two"]


# -- uploads that go on


class Cut(Exception):
    """The client is gone."""


async def cut_after(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    raise Cut


async def test_an_upload_goes_on_where_it_was_cut(box: Box) -> None:
    files = box.lab.files
    data = bytes(range(256)) * 4096
    with pytest.raises(Cut):
        await files.write(box.id, "file", cut_after(data[:600_000]), upload_id="u1")
    with pytest.raises(UploadGap) as gap:
        await files.write(box.id, "file", chunks(data[-1:]), upload_id="u1", offset=len(data) - 1)
    arrived = gap.value.arrived_bytes
    assert 0 <= arrived <= 600_000
    with pytest.raises(PathNotFound):
        await read(box, "file")
    start = arrived // 2
    assert await files.write(box.id, "file", chunks(data[start:]), upload_id="u1", offset=start) == len(data)
    assert await read(box, "file") == data
    assert await names(box) == ["file"]
    with pytest.raises(InvalidRequest, match="upload_id"):
        await files.write(box.id, "file", chunks(b""), upload_id="a/b")
    with pytest.raises(InvalidRequest, match="offset"):
        await files.write(box.id, "file", chunks(b""), offset=1)


async def test_an_upload_that_nobody_finished_is_removed_by_a_later_one(box: Box) -> None:
    with pytest.raises(Cut):
        await box.lab.files.write(box.id, "file", cut_after(b"x"), upload_id="old")
    await box.shell("touch -d '11 minutes ago' .ms-enclave-upload-old .upload-notes; ls -A")
    await box.lab.files.write(box.id, "file", chunks(b"y"), upload_id="new")
    assert await names(box) == [".upload-notes", "file"]  # what others call that is theirs


def holders(upload_id: str) -> int:
    """How many processes have what arrived of an upload open."""
    found = 0
    for fds in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):  # the process is gone
            found += any(os.readlink(fd).endswith(f"-upload-{upload_id}") for fd in fds.iterdir())
    return found


async def overtaken(box: Box, data: bytes, again: bytes, offset: int) -> int | BaseException:
    """Sends ``again`` from ``offset`` on as the same upload, which waits while the first call completes ``data``."""
    upload_id = uuid.uuid4().hex
    complete = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield data
        await complete.wait()

    first = asyncio.create_task(box.lab.files.write(box.id, "file", slowly(), mode=0o640, upload_id=upload_id))
    await until(lambda: holders(upload_id) == 1)
    second = asyncio.create_task(
        box.lab.files.write(box.id, "file", chunks(again), mode=0o640, upload_id=upload_id, offset=offset)
    )
    await until(lambda: holders(upload_id) == 2)
    complete.set()
    assert await first == len(data)
    (result,) = await asyncio.gather(second, return_exceptions=True)
    assert holders(upload_id) == 0
    return result


async def test_an_upload_that_comes_again_while_it_is_completed_is_complete(box: Box) -> None:
    data = bytes(range(256)) * 20
    assert await overtaken(box, data, data[5000:], 5000) == len(data)
    assert await read(box, "file") == data
    assert await overtaken(box, data, data, 0) == len(data)
    assert await read(box, "file") == data
    assert await names(box) == ["file"]
    assert (await box.lab.files.stat(box.id, "file")).mode == 0o640


@pytest.mark.parametrize("again", [b"other", b"a", b"a" * 6])
async def test_an_upload_that_is_complete_is_not_written_to_by_what_comes_after_it(box: Box, again: bytes) -> None:
    data = b"a" * 5005
    gap = await overtaken(box, data, again, 5000)
    assert isinstance(gap, UploadGap)
    assert gap.arrived_bytes == 0
    assert await read(box, "file") == data
    assert await names(box) == ["file"]


# -- searching


async def test_lines_that_match_are_found_in_order(box: Box) -> None:
    await box.shell(
        "mkdir d; printf 'one\\nTwo one\\n' > d/b.txt; printf 'one\\n' > a.py; printf 'one\\0' > bin; "
        "printf 'on\\xff one\\n' > z; ln -s a.py l; mkdir closed; chmod 0 closed"
    )
    top = (await box.lab.files.stat(box.id, ".")).path
    found = await search(box, ".", "one")
    assert found == [
        SearchMatch(f"{top}/a.py", 1, "one"),
        SearchMatch(f"{top}/d/b.txt", 1, "one"),
        SearchMatch(f"{top}/d/b.txt", 2, "Two one"),
        SearchMatch(f"{top}/z", 1, "on\N{REPLACEMENT CHARACTER} one"),
    ]
    assert await search(box, ".", "one", glob="*.py") == found[:1]
    assert await search(box, "d/b.txt", "^two", ignore_case=True) == found[2:3]
    assert await search(box, ".", "o.e", literal=True) == []
    assert await search(box, ".", "one", matches_max=2) == [*found[:2], None]
    assert await search(box, ".", "one", matches_max=4) == found
    with pytest.raises(InvalidRequest, match="pattern: is no regular expression"):
        await search(box, ".", "(")


async def test_long_lines_are_found_and_cut(box: Box) -> None:
    await box.isolated("open('f', 'w').write('x' * 3_000_000 + 'needle\\nneedle\\n')")
    found = [match for match in await search(box, ".", "needle") if match]
    assert [(match.line, len(match.text)) for match in found] == [(1, 1000), (2, 6)]


# -- watching


class Watched:
    """A watch, with the changes one by one."""

    def __init__(self, changes: AsyncIterator[FileChange], top: str) -> None:
        self._changes, self._top = changes, top

    async def next(self) -> tuple[str, str]:
        async with asyncio.timeout(PATIENCE_S):
            change = await anext(self._changes)
        return change.kind.value, change.path.removeprefix(f"{self._top}/")


async def test_changes_are_told_in_order(box: Box) -> None:
    top = (await box.lab.files.stat(box.id, ".")).path
    async with box.lab.files.watch(box.id, ".") as changes:
        watched = Watched(changes, top)
        assert await watched.next() == ("ready", "")
        await box.shell("echo x > a; mv a b; mkdir d; touch d/unseen; rm b")
        assert [await watched.next() for _ in range(6)] == [
            ("created", "a"),
            ("modified", "a"),
            ("removed", "a"),
            ("created", "b"),
            ("created", "d"),
            ("removed", "b"),
        ]
        await box.shell("chmod 700 d")
        assert await watched.next() == ("attributes", "d")


async def test_a_watch_goes_deep_and_follows_new_directories(box: Box) -> None:
    await box.shell("mkdir -p a/b")
    top = (await box.lab.files.stat(box.id, ".")).path
    async with box.lab.files.watch(box.id, ".", recursive=True) as changes:
        watched = Watched(changes, top)
        assert await watched.next() == ("ready", "")
        await box.shell("echo x > a/b/f")
        assert [await watched.next() for _ in range(2)] == [("created", "a/b/f"), ("modified", "a/b/f")]
        await box.shell("mkdir n")
        assert await watched.next() == ("created", "n")
        await box.shell("echo x > n/f")
        assert ("modified", "n/f") in [await watched.next() for _ in range(2)]


async def test_a_watch_ends_with_its_directory(box: Box) -> None:
    await box.shell("mkdir d")
    async with box.lab.files.watch(box.id, "d") as changes:
        assert (await anext(changes)).kind is ChangeKind.READY
        await box.shell("rmdir d")
        async with asyncio.timeout(PATIENCE_S):
            assert [change.kind async for change in changes][-1] is ChangeKind.GONE


async def test_changes_that_nobody_reads_end_in_an_overflow(box: Box) -> None:
    async with box.lab.files.watch(box.id, ".") as changes:
        assert (await anext(changes)).kind is ChangeKind.READY
        many = "import os\nname = 'x' * 200\nfor n in range(150_000):\n  os.close(os.open(name, 65)); os.unlink(name)"
        printed(await box.isolated(many, timeout_s=60))
        async with asyncio.timeout(PATIENCE_S):
            async for change in changes:
                if change.kind is ChangeKind.OVERFLOW:
                    break


async def test_too_many_directories_are_refused(box: Box) -> None:
    await box.isolated("import os\nfor n in range(1025): os.mkdir(str(n))")
    async with box.lab.files.watch(box.id, ".", recursive=True) as changes:
        with pytest.raises(PathUnusable, match="more than 1024 directories"):
            await anext(changes)
    async with box.lab.files.watch(box.id, "missing") as changes:
        with pytest.raises(PathNotFound):
            await anext(changes)


async def test_a_watch_that_is_left_costs_nothing(box: Box) -> None:
    async with box.lab.files.watch(box.id, ".") as changes:
        await anext(changes)
    await asyncio.gather(*(execution.ended for execution in box.lab.executions._by_id.values()))
    assert box.record.active_executions == 0


# -- trouble


async def test_a_file_system_that_is_full_leaves_no_half_copy(lab: Laboratory) -> None:
    box = await lab.box(working_dir_size_bytes=MIB, tmp_size_bytes=MIB)
    await box.shell("head -c 700000 /dev/zero > f; mkdir d; cp f d/g")
    with pytest.raises(NoSpace):
        await lab.files.write(box.id, "big", chunks(*([bytes(100_000)] * 20)))
    assert await names(box) == ["d", "f"]


async def test_a_killed_job_has_not_succeeded(box: Box) -> None:
    await box.shell("mkdir d; cd d; head -c 9000000 /dev/zero | split -b 300000")
    killer = await box.open_shell("while :; do kill -9 -1; done")
    try:
        for number in range(5):
            with contextlib.suppress(PathUnusable):
                await box.lab.files.copy(box.id, "d", f"c{number}", recursive=True)
    finally:
        killer.cancel("the test")
    await killer.ended
    whole = await names(box, "d")
    for copy in [name for name in await names(box) if name.startswith("c")]:
        assert await names(box, copy) == whole


async def test_a_time_beyond_what_messages_carry_hides_no_file(box: Box) -> None:
    await box.shell(
        "mkdir times; touch -d @-99999999999 times/early; touch -d @999999999999 times/late; touch times/now"
    )
    async with box.lab.files.list(box.id, "times") as pages:
        found = {
            info.path.rpartition("/")[2]: file_info(info) for page in [page async for page in pages] for info in page
        }
    assert sorted(found) == ["early", "late", "now"]
    assert found["late"].modify_time.ToDatetime().year > 2262  # as late as the file system can
    assert found["early"].modify_time.ToDatetime().year <= 1901
