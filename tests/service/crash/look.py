"""Looks at all there is of sandboxes: what the daemon shows, what is written down, what lies on the disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from enclaved.core.state import DATABASE_NAME
from tests.scripts.loading import load
from tests.service.crash.client import Client
from tests.service.crash.history import History, Seen, state_of

_UNFINISHED: Final = "SELECT id, sandbox_id FROM executions WHERE finished IS NULL"


def rows(state_dir: Path, query: str) -> list[dict[str, Any]]:
    """Reads the database, as another program."""
    with closing(sqlite3.connect(f"file:{state_dir / DATABASE_NAME}?mode=ro", uri=True)) as connection:
        found = connection.execute(query)
        names = [column[0] for column in found.description]
        return [dict(zip(names, values, strict=True)) for values in found]


async def look_round(client: Client, history: History, state_dir: Path, containers: Mapping[str, str]) -> Seen:
    """Looks at everything, and reads back what clients wrote. ``containers``: the sandbox of each."""
    listed = await client.list()
    ran, files = {}, {}
    for sandbox_id in [key for key, sandbox in listed.items() if state_of(sandbox) == "RUNNING"]:
        mine = [run.execution_id for run in history.runs if run.sandbox_id == sandbox_id]
        if mine:
            lines = (await client.read(sandbox_id, "runs") or b"").decode().split()
            ran |= {name: lines.count(name) for name in mine}
        written = {
            found.answer for found in history.operations if found.kind == "write" and found.subject == sandbox_id
        }
        for path in sorted(written):
            files[sandbox_id, path] = await client.read(sandbox_id, path)
    place = state_dir / "s"
    return Seen(
        sandboxes=listed,
        containers=containers,
        rows={row["id"]: row for row in rows(state_dir, "SELECT * FROM sandboxes")},
        execution_rows={row["id"]: row["sandbox_id"] for row in rows(state_dir, _UNFINISHED)},
        directories=frozenset(path.name for path in place.iterdir()) if place.is_dir() else frozenset(),
        files=files,
        ran=ran,
    )


def docker_containers(state_dir: Path) -> dict[str, str]:
    """The containers of a state directory on this machine's engine, and the sandbox of each."""
    of_directory = {row["directory"]: row["id"] for row in rows(state_dir, "SELECT id, directory FROM sandboxes")}
    found = {}
    for container in load("_suites").run_containers(_engine(), state_dir):
        names = [of_directory.get(path.rpartition("/")[0]) for path in container.mounts]
        found[container.id] = next(filter(None, names), "nobody")
    return found


def remove_docker_containers(state_dir: Path) -> None:
    """Removes what a test that failed has left."""
    for container in load("_suites").run_containers(_engine(), state_dir):
        _engine().remove_container(container.id)


def _engine() -> Any:
    return load("_engine").Engine.from_environment()
