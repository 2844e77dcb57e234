"""The tables as the core uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from enclaved.core.execution_rows import ExecutionRow, ExecutionText
from enclaved.core.state.chronicle import Chronicle, EndedRequest, Write
from enclaved.core.state.database import Database
from enclaved.core.state.names import Names
from enclaved.core.state.pools import LeaseTable, PoolTable
from enclaved.core.state.rows import SandboxRow, decode, differing, encode, encode_as, shallow
from enclaved.model import Adjustment, Finished, PortMapping, SandboxEvent, SandboxSpec, SandboxState, StateChange
from enclaved.runtime.base import Image

DATABASE_NAME: Final = "state.db"


class State:
    """The daemon's database. One daemon uses it at a time; the lock on the state directory sees to that."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.sandboxes = SandboxTable(database)
        self.executions = ExecutionTable(database)
        self.names = Names(database)
        self.pools = PoolTable(database)
        self.leases = LeaseTable(database)

    @classmethod
    def open(cls, path: Path) -> State:
        """Opens the database at a path; makes it if there is none. Raises `StateUnusable`."""
        return cls(Database(path))

    def tell(self, told: Callable[[bool], None]) -> None:
        """Has somebody told whether writes work, at each change."""
        self._database.told = told

    @property
    def is_in_place(self) -> bool:
        """Whether the next daemon will find what is written."""
        return self._database.is_in_place

    async def keep(self) -> None:
        """Does what the database needs done in the background. Never returns."""
        await self._database.keep()

    def close(self) -> None:
        """Closes the file."""
        self._database.close()


class SandboxTable:
    """Sandboxes. A change that others follow is written together with the row that it changed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.chronicle = Chronicle(database)

    def save(self, row: SandboxRow, event: SandboxEvent | None = None) -> None:
        """Writes a sandbox down before something is made for it. Raises `NoSpace`; then nothing must be made."""
        writes: list[Write] = [(_SAVE_SANDBOX, _sandbox_values(row))]
        if event is not None:
            writes.append(self.chronicle.write_of(event))
        self._database.write_all(writes)

    def note(self, row: SandboxRow, event: SandboxEvent | None = None) -> None:
        """Writes down what has happened to a sandbox, at once or as soon as the disk allows."""
        self._note(row.id, (_SAVE_SANDBOX, _sandbox_values(row)), event)

    def note_use(self, sandbox_id: str, number: int, used_monotonic_s: float) -> None:
        """Writes down when a sandbox was last used."""
        values = {"id": sandbox_id, "number": number, "used_monotonic_s": used_monotonic_s}
        self._database.write_surely(f"use {sandbox_id}", _NOTE_USE, values)

    def forget(
        self, sandbox_id: str, number: int, event: SandboxEvent | None = None, request: EndedRequest | None = None
    ) -> None:
        """Drops a sandbox of which nothing is left. A younger one of the same id stays."""
        values = {"id": sandbox_id, "number": number}
        self._note(sandbox_id, (_FORGET_SANDBOX, values), event, request)

    def _note(
        self,
        sandbox_id: str,
        write: Write,
        event: SandboxEvent | None = None,
        request: EndedRequest | None = None,
    ) -> None:
        writes = {f"sandbox {sandbox_id}": write}
        if event is not None:  # on a full disk only its last change is owed
            writes[f"change of {sandbox_id}"] = self.chronicle.write_of(event)
        if request is not None:
            writes[f"request of {sandbox_id}"] = request.write
        self._database.write_all_surely(writes)

    def load(self) -> list[SandboxRow]:
        """Reads all, oldest first. Raises `StateUnusable`."""
        return self._database.load("SELECT * FROM sandboxes ORDER BY number", _sandbox)


class ExecutionTable:
    """Executions: an `ExecutionStore`. What the daemon runs for itself (files, resets) need not be in it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, row: ExecutionRow) -> None:
        """Writes an execution down before its job is sent, or what has changed of it. Raises `NoSpace`."""
        values = {
            "id": row.id,
            "sandbox_id": row.sandbox_id,
            "created_at": row.created_at.isoformat(),
            "body": encode_as(ExecutionRow, row, leave_out=_LEFT_OUT),
            "finished": None if row.finished is None else encode_as(Finished, row.finished),
        }
        self._database.write(_SAVE_EXECUTION, values)

    def settle(self, settled: Mapping[str, Finished | None]) -> None:
        """Notes how executions ended, and drops those with ``None``, at once or as soon as the disk allows."""
        self._database.write_all_surely(
            {
                f"execution {execution_id}": (_FORGET_EXECUTION, {"id": execution_id})
                if finished is None
                else (_FINISH_EXECUTION, {"id": execution_id, "finished": encode_as(Finished, finished)})
                for execution_id, finished in settled.items()
            }
        )

    def finish(self, execution_id: str, finished: Finished) -> None:
        """Notes how an execution ended, at once or as soon as the disk allows."""
        self.settle({execution_id: finished})

    def forget(self, execution_id: str) -> None:
        """Drops an execution that nobody can ask for any more, or whose job was never sent."""
        self.settle({execution_id: None})

    def texts(self) -> list[ExecutionText]:
        """Finds all, oldest first. Raises `StateUnusable`."""
        query = "SELECT id, sandbox_id, body, finished FROM executions ORDER BY created_at, id"
        return self._database.load(query, lambda values: ExecutionText(**values))

    def read(self, text: ExecutionText) -> ExecutionRow:
        """Reads what was found. Raises `StateUnusable`."""
        return self._database.make_sense(partial(_execution, text))

    def load(self) -> list[ExecutionRow]:
        """Reads all, oldest first. Raises `StateUnusable`."""
        return [self.read(text) for text in self.texts()]


_SAVE_SANDBOX: Final = """
    INSERT OR REPLACE INTO sandboxes (
        id, number, spec, adjustments, labels, uid, directory, container_id, image, env, state,
        state_reason, created_at, updated_at, expires_monotonic_s, boot_id, pool_id,
        tenant, request_id, request_digest, revision, used_monotonic_s, limits_due, history,
        owner, waived, command_execution_id, published_ports, gid, command_due
    ) VALUES (
        :id, :number, :spec, :adjustments, :labels, :uid, :directory, :container_id, :image, :env, :state,
        :state_reason, :created_at, :updated_at, :expires_monotonic_s, :boot_id, :pool_id,
        :tenant, :request_id, :request_digest, :revision, :used_monotonic_s, :limits_due, :history,
        :owner, :waived, :command_execution_id, :published_ports, :gid, :command_due
    )
"""
_NOTE_USE: Final = "UPDATE sandboxes SET used_monotonic_s = :used_monotonic_s WHERE id = :id AND number = :number"
_FORGET_SANDBOX: Final = "DELETE FROM sandboxes WHERE id = :id AND number = :number"
_LEFT_OUT: Final = frozenset({"finished"})
"""Of an execution's body: it has a column of its own."""
_SAVE_EXECUTION: Final = """
    INSERT INTO executions VALUES (:id, :sandbox_id, :created_at, :body, :finished)
    ON CONFLICT (id) DO UPDATE SET body = excluded.body, finished = coalesce(excluded.finished, finished)
"""

_FINISH_EXECUTION: Final = "UPDATE executions SET finished = :finished WHERE id = :id"
_FORGET_EXECUTION: Final = "DELETE FROM executions WHERE id = :id"


def _sandbox_values(row: SandboxRow) -> dict[str, Any]:
    return {
        **shallow(row),
        "spec": encode(differing(row.spec)),
        "adjustments": encode(row.adjustments),
        "labels": encode(row.labels),
        "image": encode(row.image),
        "env": encode(row.env),
        "state": row.state.value,
        "created_at": row.created_at.isoformat(),
        "updated_at": row.updated_at.isoformat(),
        "history": encode(row.history),
        "waived": encode(row.waived),
        "published_ports": encode(row.published_ports),
    }


def _sandbox(values: dict[str, Any]) -> SandboxRow:
    decoded = {
        "spec": decode(SandboxSpec, values["spec"]),
        "adjustments": decode(tuple[Adjustment, ...], values["adjustments"]),
        "labels": decode(Mapping[str, str], values["labels"]),
        "image": decode(Image | None, values["image"]),
        "env": decode(Mapping[str, str], values["env"]),
        "state": SandboxState(values["state"]),
        "created_at": datetime.fromisoformat(values["created_at"]),
        "updated_at": datetime.fromisoformat(values["updated_at"]),
        "limits_due": bool(values["limits_due"]),
        "command_due": bool(values["command_due"]),
        "history": decode(tuple[StateChange, ...], values["history"]),
        "waived": decode(tuple[str, ...], values["waived"]),
        "published_ports": decode(tuple[PortMapping, ...], values["published_ports"]),
    }
    return SandboxRow(**{**values, **decoded})


def _execution(text: ExecutionText) -> ExecutionRow:
    # One text of two columns: reading each by itself takes twice as long.
    body = text.body if text.finished is None else f'{text.body[:-1]},"finished":{text.finished}}}'
    row: ExecutionRow = decode(ExecutionRow, body)
    return row
