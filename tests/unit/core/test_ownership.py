"""Which containers and directories are ours."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclaved.core.ownership import KEY_NAME, LOCK_NAME, Ownership, abandoned, owner_of_embedded, remove_state
from enclaved.runtime.base import LABEL_HMAC, LABEL_ID, LABEL_OWNER, LABEL_UID

OURS = Ownership(b"our key")
GONE = "4194305-1"
"""What a program named its daemon's directory whose process id is above all that Linux gives."""


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Holds the lock of a daemon that lives."""
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def directory_of_a_daemon(base: Path, name: str, *, key: bool = True) -> Path:
    state_dir = base / name / "state"
    state_dir.mkdir(parents=True)
    (state_dir / LOCK_NAME).touch()
    if key:
        Ownership.of(state_dir)
    return state_dir


def test_our_own_labels_are_proven() -> None:
    labels = OURS.labels("box", 1900000001)
    assert OURS.proves(labels)
    assert OURS.proves({**labels, "another": "label of the image"})
    assert labels[LABEL_OWNER] == OURS.owner
    assert (labels[LABEL_ID], labels[LABEL_UID]) == ("box", "1900000001")


def test_nothing_secret_is_in_the_labels() -> None:
    assert all(b"our key".hex() not in value and "our key" not in value for value in OURS.labels("box", 1).values())


@pytest.mark.parametrize("name", [LABEL_ID, LABEL_OWNER, LABEL_UID, LABEL_HMAC])
@pytest.mark.parametrize("value", ["", "forged", "é", "\ud800", "0" * 64])
def test_forged_labels_are_not_proven(name: str, value: str) -> None:
    assert not OURS.proves({**OURS.labels("box", 1900000001), name: value})


@pytest.mark.parametrize("name", [LABEL_ID, LABEL_OWNER, LABEL_UID, LABEL_HMAC])
def test_missing_labels_are_not_proven(name: str) -> None:
    labels = OURS.labels("box", 1900000001)
    del labels[name]
    assert not OURS.proves(labels)


def test_labels_of_another_daemon_are_not_proven() -> None:
    theirs = Ownership(b"their key")
    assert not OURS.proves(theirs.labels("box", 1))
    assert not OURS.proves({**theirs.labels("box", 1), LABEL_OWNER: OURS.owner})
    assert theirs.owner != OURS.owner


@given(st.dictionaries(st.sampled_from([LABEL_ID, LABEL_OWNER, LABEL_UID, LABEL_HMAC]), st.text()))
def test_no_labels_raise(labels: dict[str, str]) -> None:
    assert not OURS.proves(labels)


def test_the_key_of_a_state_directory_is_made_once_and_for_nobody_else(tmp_path: Path) -> None:
    first = Ownership.of(tmp_path)
    assert Ownership.of(tmp_path).owner == first.owner
    assert (tmp_path / KEY_NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [KEY_NAME]


def test_directories_of_daemons_that_are_gone_are_found_and_removed(tmp_path: Path) -> None:
    own = directory_of_a_daemon(tmp_path, "own")
    gone = directory_of_a_daemon(tmp_path, GONE)
    expected = Ownership.of(gone).owner

    found = []
    for directory, ownership in abandoned(tmp_path, own):
        found.append((directory, ownership.owner))
        remove_state(directory)

    assert found == [(gone, expected)]
    assert not gone.parent.exists()
    assert own.exists()


def test_a_directory_whose_lock_is_held_is_left_alone(tmp_path: Path) -> None:
    own = directory_of_a_daemon(tmp_path, "own")
    alive = directory_of_a_daemon(tmp_path, GONE)
    with held(alive / LOCK_NAME):
        assert list(abandoned(tmp_path, own)) == []
    assert [directory for directory, _ in abandoned(tmp_path, own)] == [alive]


def test_the_directory_of_a_program_that_runs_is_left_alone(tmp_path: Path) -> None:
    own = directory_of_a_daemon(tmp_path, "own")
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    directory_of_a_daemon(tmp_path, f"{os.getpid()}-{started}")
    directory_of_a_daemon(tmp_path, f"{os.getpid()}-{started}-0a")
    another_of_the_id = directory_of_a_daemon(tmp_path, f"{os.getpid()}-{int(started) + 1}")
    assert [directory for directory, _ in abandoned(tmp_path, own)] == [another_of_the_id]


def test_a_program_is_found_whatever_bytes_its_name_has(tmp_path: Path) -> None:
    program = os.fsencode(tmp_path) + b"/\xff) 1"
    os.symlink(os.fsencode(shutil.which("sleep") or ""), program)
    with subprocess.Popen([program, b"600"]) as process:
        started = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
        found = owner_of_embedded(tmp_path / f"{process.pid}-{started}")
        process.kill()
    assert found == process.pid


def test_a_daemon_that_no_program_started_keeps_its_directory_also_beside_theirs(tmp_path: Path) -> None:
    own = directory_of_a_daemon(tmp_path, "own")
    directory_of_a_daemon(tmp_path, "service")
    directory_of_a_daemon(tmp_path, f"{GONE}-not-hexadecimal")
    assert list(abandoned(tmp_path, own)) == []


def test_a_directory_is_locked_while_it_is_looked_at(tmp_path: Path) -> None:
    gone = directory_of_a_daemon(tmp_path, GONE)
    for _ in abandoned(tmp_path, tmp_path / "own"):
        assert list(abandoned(tmp_path, tmp_path / "other")) == []
    assert [directory for directory, _ in abandoned(tmp_path, tmp_path / "own")] == [gone]


def test_a_directory_without_a_key_is_being_made_and_left_alone(tmp_path: Path) -> None:
    directory_of_a_daemon(tmp_path, GONE, key=False)
    assert list(abandoned(tmp_path, tmp_path / "own")) == []


def test_there_may_be_no_directories_at_all(tmp_path: Path) -> None:
    assert list(abandoned(tmp_path / "missing", tmp_path)) == []
