"""The file: whole after any end of its process, refused with a reason where it cannot be used, never silently lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from enclaved.core.state import StateUnusable, database
from enclaved.core.state.database import Database
from enclaved.core.state.schema import APPLICATION_ID, MIGRATIONS
from enclaved.errors import NoSpace

ROOT = Path(__file__).parents[4]
PUT = "INSERT OR REPLACE INTO executions VALUES (:id, 'box', '', :body, NULL)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def opened(path: Path) -> Iterator[Database]:
    found = Database(path)
    yield found
    found.close()


def put(found: Database, name: str, body: str = "{}") -> None:
    found.write(PUT, {"id": name, "body": body})


def names(found: Database) -> list[str]:
    return found.load("SELECT id FROM executions ORDER BY id", lambda values: str(values["id"]))


def fill(found: Database) -> None:
    """From now on the database cannot grow, as on a full disk."""
    pages = found._number("PRAGMA page_count")
    found._connection.execute(f"PRAGMA max_page_count = {pages}")


def make_room(found: Database) -> None:
    found._connection.execute("PRAGMA max_page_count = 1000000")


def overfill(found: Database) -> None:
    fill(found)
    with pytest.raises(NoSpace, match="state directory"):
        put(found, "too much", "x" * 100_000)


def test_nobody_else_may_read_it(opened: Database, path: Path) -> None:
    put(opened, "a")
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["state.db", "state.db-shm", "state.db-wal"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_it_says_whose_it_is_and_which_version_it_has(opened: Database) -> None:
    assert opened._number("PRAGMA application_id") == APPLICATION_ID
    assert opened._number("PRAGMA user_version") == len(MIGRATIONS)


def test_a_process_that_is_killed_loses_nothing_that_was_written(path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from enclaved.core.state.database import Database
found = Database(Path({str(path)!r}))
for number in range(50):
    found.write({PUT!r}, {{"id": f"{{number:03}}", "body": "x" * 2000}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ".:sdk_python"}, check=False)
    assert ended.returncode == -9
    found = Database(path)
    assert len(names(found)) == 50
    found.close()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"This is no database, but it is long enough to be taken for one." * 20, "damaged"),
        (b"SQLite format 3\0" + b"\xff" * 8000, "damaged"),
    ],
)
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path: Path, content: bytes, why: str) -> None:
    path.write_bytes(content)
    with pytest.raises(StateUnusable, match=rf"{why}.*move the file away"):
        Database(path)
    assert path.read_bytes() == content


def test_a_damaged_page_is_found_at_the_start(path: Path) -> None:
    found = Database(path)
    for number in range(200):
        put(found, f"{number}", "x" * 500)
    found.close()
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 5] = b"\x55" * 8192
    path.write_bytes(content)
    with pytest.raises(StateUnusable, match="damaged"):
        Database(path)


def test_the_database_of_another_program_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE things (name TEXT)")
    other.close()
    with pytest.raises(StateUnusable, match="another program"):
        Database(path)


def test_a_database_of_a_newer_version_is_refused(path: Path) -> None:
    found = Database(path)
    found._connection.execute("PRAGMA user_version = 99")
    found.close()
    with pytest.raises(StateUnusable, match=r"newer enclaved.*version 99.*install"):
        Database(path)


def test_an_older_version_is_brought_up_to_date_with_what_is_in_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Database(path)
    put(found, "old")
    found.close()
    more = (*MIGRATIONS, ("ALTER TABLE executions ADD COLUMN extra TEXT NOT NULL DEFAULT 'new'",))
    monkeypatch.setattr(database, "MIGRATIONS", more)
    found = Database(path)
    assert found._number("PRAGMA user_version") == len(more)
    assert found.load("SELECT id, extra FROM executions", lambda values: values) == [{"id": "old", "extra": "new"}]
    found.close()


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Database(path).close()
    broken = (*MIGRATIONS, ("CREATE TABLE half (name TEXT)", "CREATE TABLE executions (name TEXT)"))
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", broken)
        with pytest.raises(StateUnusable):
            Database(path)
    found = Database(path)
    assert found._number("SELECT count(*) FROM sqlite_master WHERE name = 'half'") == 0
    found.close()


def test_a_directory_in_its_place_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StateUnusable, match="directory"):
        Database(path)


def test_a_row_that_makes_no_sense_is_refused(opened: Database) -> None:
    put(opened, "a")
    with pytest.raises(StateUnusable, match="a row makes no sense"):
        opened.load("SELECT id FROM executions", lambda values: int(values["id"]))


def test_a_full_disk_refuses_a_write_and_keeps_what_there_is(opened: Database) -> None:
    put(opened, "before")
    overfill(opened)
    assert names(opened) == ["before"]
    make_room(opened)
    put(opened, "after")
    assert names(opened) == ["after", "before"]


def test_what_has_happened_is_written_when_there_is_room_again(opened: Database) -> None:
    fill(opened)
    for body in ("first", "second"):
        opened.write_surely("key", PUT, {"id": "a", "body": body * 20_000})
    opened.write_surely("other", PUT, {"id": "b", "body": "x" * 100_000})
    assert (names(opened), opened.owed) == ([], 2)
    with pytest.raises(NoSpace):  # nothing overtakes what is owed
        put(opened, "c")
    make_room(opened)
    put(opened, "c")
    assert (names(opened), opened.owed) == (["a", "b", "c"], 0)
    bodies = opened.load("SELECT body FROM executions WHERE id = 'a'", lambda values: str(values["body"]))
    assert bodies == ["second" * 20_000]


async def test_what_is_owed_is_paid_without_another_write(opened: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CHECKPOINT_EVERY_S", 0.01)
    fill(opened)
    opened.write_surely("key", PUT, {"id": "a", "body": "x" * 100_000})
    make_room(opened)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await opened.keep()
    assert (names(opened), opened.owed) == (["a"], 0)


async def test_the_log_of_writes_stays_small_under_constant_writes(
    opened: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "CHECKPOINT_WRITES", 100)
    monkeypatch.setattr(database, "LOG_MOST_BYTES", 1024 * 1024)
    log = path.with_name("state.db-wal")
    keeping = asyncio.create_task(opened.keep())
    shrunk = size = 0
    async with asyncio.timeout(60):
        while shrunk < 3:
            for number in range(20):
                put(opened, f"{number}", "x" * 3000)
            await asyncio.sleep(0)
            before, size = size, log.stat().st_size
            shrunk += size < before
    keeping.cancel()
    await asyncio.wait([keeping])
    assert len(names(opened)) == 20


def test_a_closed_database_is_one_file(path: Path) -> None:
    found = Database(path)
    put(found, "a")
    found.close()
    assert [file.name for file in path.parent.iterdir()] == ["state.db"]


def killed(path: Path, count: int = 20) -> None:
    """Writes something in a process that is killed then: its log of writes and the index of that stay."""
    code = f"""
import os, signal
from pathlib import Path
from enclaved.core.state.database import Database
found = Database(Path({str(path)!r}))
for number in range({count}):
    found.write({PUT!r}, {{"id": f"run{{number:02}}", "body": "{{}}" + "x" * 3000}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL


def cut(log: Path) -> None:
    os.truncate(log, log.stat().st_size // 2)


def cut_to_nothing(log: Path) -> None:
    os.truncate(log, 0)


def remove(log: Path) -> None:
    log.unlink()


def flip_a_bit(log: Path) -> None:
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 4
    log.write_bytes(data)


def flip_a_bit_of_the_header(log: Path) -> None:
    data = bytearray(log.read_bytes())
    data[9] ^= 1
    log.write_bytes(data)


@pytest.mark.parametrize(
    "harm", [cut, cut_to_nothing, remove, flip_a_bit, flip_a_bit_of_the_header], ids=lambda harm: harm.__name__
)
def test_a_log_of_writes_that_lacks_something_is_refused_until_somebody_decides(
    path: Path, harm: Callable[[Path], None]
) -> None:
    killed(path)
    harm(path.with_name("state.db-wal"))
    for _ in range(2):  # a second start is as careful as the first
        with pytest.raises(StateUnusable, match=r"its log of writes is damaged.*remove state\.db-shm"):
            Database(path)
    path.with_name("state.db-shm").unlink()
    found = Database(path)
    assert len(names(found)) < 20
    found.close()


def test_a_log_of_writes_that_is_whole_is_taken_as_it_is(path: Path) -> None:
    killed(path)
    with path.with_name("state.db-wal").open("ab") as log:  # half a write, whose process was killed
        log.write(bytes(1000))
    found = Database(path)
    assert len(names(found)) == 20
    found.close()


def test_after_a_start_of_the_machine_the_log_may_lack_something(path: Path) -> None:
    killed(path)
    cut(path.with_name("state.db-wal"))
    os.utime(path.with_name("state.db-shm"), (1, 1))
    Database(path).close()


def test_a_file_that_was_emptied_is_no_new_one_where_there_are_sandboxes(path: Path) -> None:
    (path.parent / "s" / "0a1b2c3d").mkdir(parents=True)
    path.touch()
    with pytest.raises(StateUnusable, match="it is empty, and there are sandboxes; put a copy"):
        Database(path)
    assert path.stat().st_size == 0
    (path.parent / "s" / "0a1b2c3d").rmdir()
    Database(path).close()


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_is_taken_away_is_noticed(
    path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    monkeypatch.setattr(database, "CHECKPOINT_EVERY_S", 0.01)
    found, told = Database(path), []
    found.told = told.append
    put(found, "before")
    path.rename(path.with_name("elsewhere"))
    if replaced:
        path.write_bytes(b"")
    with pytest.raises(NoSpace, match="was removed or replaced while the daemon ran; restart the daemon"):
        put(found, "refused")
    found.write_surely("after", PUT, {"id": "after", "body": "{}"})
    assert (told, found.owed, found.is_in_place) == ([True, False], 1, False)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await found.keep()
    assert path.exists() is replaced, "nobody makes an empty one in its place"
    path.unlink(missing_ok=True)
    path.with_name("elsewhere").rename(path)
    put(found, "again")
    assert (told, found.owed) == ([True, False, True], 0)
    assert names(found) == ["after", "again", "before"]
    found.close()


def mostly_empty(path: Path) -> int:
    """A file whose rows went, but for one; returns its size."""
    found = Database(path)
    for number in range(24):
        put(found, f"{number}", "x" * 100_000)
    found._connection.execute("DELETE FROM executions WHERE id <> '7'")
    found.close()
    return path.stat().st_size


def test_room_that_nobody_uses_is_given_back_at_the_next_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = mostly_empty(path)
    again = Database(path)
    assert path.stat().st_size == size, "it is worth the work only where there is much of it"
    again.close()
    monkeypatch.setattr(database, "SHRINK_FROM_BYTES", 1024 * 1024)
    again = Database(path)
    assert (path.stat().st_size < size / 5, names(again)) == (True, ["7"])
    again.close()


def test_somebody_who_reads_the_file_meanwhile_is_no_reason_not_to_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mostly_empty(path)
    monkeypatch.setattr(database, "SHRINK_FROM_BYTES", 1024 * 1024)
    monkeypatch.setattr(database, "BUSY_S", 0.01)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM executions").fetchall()
        again = Database(path)
        assert names(again) == ["7"]
        again.close()
