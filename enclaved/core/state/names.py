"""The names of what is written down, for comparing them with what there is. Read beside the daemon's own work."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Final

from enclaved.core.state.database import Database, StateUnusable

BUSY_S: Final = 5.0


class Names:
    """Reads with a connection of its own, so that any thread may call it. Each method raises `StateUnusable`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def complete(self) -> bool:
        """Whether nothing waits for the disk: until then something that was dropped may still be there."""
        return self._database.owed == 0

    def sandboxes(self) -> list[tuple[str, int]]:
        """Id and number of every sandbox."""
        return [(str(name), int(number)) for name, number in self._read("SELECT id, number FROM sandboxes")]

    def executions(self, after: str, most: int) -> list[str]:
        """Ids of executions in their order, those beyond ``after``, at most so many."""
        query = "SELECT id FROM executions WHERE id > ? ORDER BY id LIMIT ?"
        return [str(row[0]) for row in self._read(query, after, most)]

    def executions_among(self, ids: Sequence[str]) -> list[str]:
        """Those of the ids that are there."""
        query = "SELECT id FROM executions WHERE id IN (SELECT value FROM json_each(?))"
        return [str(row[0]) for row in self._read(query, json.dumps(list(ids)))] if ids else []

    def _read(self, query: str, *values: Any) -> list[Any]:
        path = self._database.path
        try:
            with closing(sqlite3.connect(path, timeout=BUSY_S)) as connection:
                return connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StateUnusable(f"cannot read the state database {path}: {error}") from error
