"""Files that earlier versions wrote are opened with everything in them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from enclaved.core.state import State
from enclaved.core.state.schema import APPLICATION_ID, MIGRATIONS
from enclaved.model import SandboxState

SPEC = {
    "image": "python:3.11-slim",
    "memory_limit_bytes": 536870912,
    "cpu_limit": 1.0,
    "pids_limit": 256,
    "working_dir_size_bytes": 134217728,
    "tmp_size_bytes": 67108864,
    "shm_size_bytes": 67108864,
    "working_dir": "/sandbox",
    "env_vars": {"NAME": "value"},
    "tools": None,
    "timeout_s": 30.0,
    "timeout_max_s": 3600.0,
    "ttl_s": 86400.0,
    "remove_on_exit": False,
    "auto_resume": True,
    "kill_at_pids_limit": False,
}
SANDBOX = (
    "box",
    7,
    json.dumps(SPEC),
    '[{"field":"cpu_limit","wanted":"2","granted":"1","rule":"limits"}]',
    '{"team":"blue"}',
    1_900_000_001,
    "/var/lib/enclaved/s/0badcafe",
    "c0ffee",
    "null",
    '{"HOME":"/sandbox"}',
    "running",
    "",
    "2026-11-01T10:00:00+00:00",
    "2026-11-01T10:00:01+00:00",
    86_500.5,
    "b007",
    "",
)
EXECUTION = {
    "id": "run",
    "sandbox_id": "box",
    "tool": "python_executor",
    "context": "",
    "created_at": "2026-11-01T10:01:00+00:00",
    "timeout_s": 30.0,
    "output_limit_bytes": None,
    "idle_timeout_s": 0.0,
    "stdin": False,
    "merge_stderr": False,
    "terminal": None,
    "keep_last_bytes": None,
    "detach": False,
    "detach_grace_s": 60.0,
    "on_awaiting_input": "notice",
    "oom_kills_before": None,
    "pids_limit_hits_before": None,
}


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    """A file as version 1 left it, with a sandbox and an execution in it."""
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in MIGRATIONS[0]:
            connection.execute(statement)
        connection.execute(f"INSERT INTO sandboxes VALUES ({','.join('?' * len(SANDBOX))})", SANDBOX)
        values = ("run", "box", EXECUTION["created_at"], json.dumps(EXECUTION), None)
        connection.execute("INSERT INTO executions VALUES (?, ?, ?, ?, ?)", values)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
    return path


def test_sandboxes_of_version_1_are_there_and_lack_nothing(version_1: Path) -> None:
    state = State.open(version_1)
    (row,) = state.sandboxes.load()
    (execution,) = state.executions.load()
    state.close()
    assert (row.id, row.number, row.state, row.container_id) == ("box", 7, SandboxState.RUNNING, "c0ffee")
    assert (row.spec.image, row.spec.auto_resume, row.labels) == ("python:3.11-slim", True, {"team": "blue"})
    assert row.created_at == datetime(2026, 11, 1, 10, tzinfo=UTC)
    assert (row.tenant, row.request_id, row.request_digest, row.revision) == ("default", "", "", 0)
    assert (row.used_monotonic_s, row.limits_due, row.history) == (0.0, False, ())
    assert (execution.id, execution.sandbox_id) == ("run", "box")


def test_what_was_migrated_can_be_written_and_read_again(version_1: Path) -> None:
    state = State.open(version_1)
    (row,) = state.sandboxes.load()
    state.sandboxes.save(row)
    state.close()
    state = State.open(version_1)
    assert state.sandboxes.load() == [row]
    state.close()
