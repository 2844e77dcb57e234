"""Pools, their members, and what is written down of each use of a member."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from enclaved.core.state.database import Database
from enclaved.core.state.rows import decode, encode, encode_as
from enclaved.model import LOCAL, Identity, Lease, PoolOrigin, PoolPlan

LEASES_KEPT: Final = 1000
"""Of each pool; older ones give way."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a sandbox had when it was new, for comparison."""

    mounts: str
    """Digest of its table of mounts."""
    keys: int
    """Keys and keyrings of the kernel that its user has."""


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A pool as the next daemon must know it."""

    id: str
    origin: PoolOrigin
    plan: PoolPlan
    made: bool
    """Whether whoever asked for it was told so; else nobody knows of it."""
    created_at: datetime
    deleting: bool = False
    """Whether somebody has asked for its end; it is then finished, by this daemon or the next."""
    owner: Identity = LOCAL
    """As whom its members are made."""


@dataclass(frozen=True, slots=True)
class MemberRow:
    """One slot of a pool whose sandbox was made to the end."""

    pool_id: str
    slot: int
    sandbox_id: str
    number: int
    """Of the sandbox: a younger one of the same id is another."""
    baseline: Baseline


class PoolTable:
    """Pools and their members."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, row: PoolRow) -> None:
        """Writes a pool down before its members are made. Raises `NoSpace`; then nothing must be made."""
        self._database.write(_SAVE_POOL, _pool_values(row))

    def note(self, row: PoolRow) -> None:
        """Writes down what has changed of a pool, at once or as soon as the disk allows."""
        self._database.write_surely(f"pool {row.id}", _SAVE_POOL, _pool_values(row))

    def forget(self, pool_id: str) -> None:
        """Drops a pool, its members and its leases; what is left of its sandboxes is then of no pool."""
        values = {"id": pool_id}
        self._database.write_all_surely(
            {
                f"pool {pool_id}": ("DELETE FROM pools WHERE id = :id", values),
                f"members of {pool_id}": ("DELETE FROM pool_members WHERE pool_id = :id", values),
                f"leases of {pool_id}": ("DELETE FROM leases WHERE pool_id = :id", values),
            }
        )

    def note_member(self, row: MemberRow) -> None:
        """Writes down that a slot has a sandbox, at once or as soon as the disk allows."""
        values = {
            "pool_id": row.pool_id,
            "slot": row.slot,
            "sandbox_id": row.sandbox_id,
            "number": row.number,
            "body": encode_as(MemberRow, row),
        }
        self._database.write_surely(f"member {row.pool_id} {row.slot}", _SAVE_MEMBER, values)

    def forget_member(self, pool_id: str, slot: int) -> None:
        """Notes that a slot has no sandbox any more."""
        sql = "DELETE FROM pool_members WHERE pool_id = :pool_id AND slot = :slot"
        self._database.write_surely(f"member {pool_id} {slot}", sql, {"pool_id": pool_id, "slot": slot})

    def load(self) -> list[PoolRow]:
        """Reads all pools, oldest first. Raises `StateUnusable`."""
        return self._database.load("SELECT body FROM pools ORDER BY created_at, id", lambda row: _of(PoolRow, row))

    def load_members(self) -> list[MemberRow]:
        """Reads the members of all pools, by slot. Raises `StateUnusable`."""
        query = "SELECT body FROM pool_members ORDER BY pool_id, slot"
        return self._database.load(query, lambda row: _of(MemberRow, row))


class LeaseTable:
    """The last uses of each pool's members, the same place taken again by one that is 1,000 younger."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, lease: Lease) -> None:
        """Writes a lease down when it is over, at once or as soon as the disk allows."""
        place = lease.number % LEASES_KEPT
        values = {
            "pool_id": lease.pool_id,
            "place": place,
            "number": lease.number,
            "body": encode_as(Lease, lease),
        }
        self._database.write_surely(f"lease {lease.pool_id} {place}", _SAVE_LEASE, values)

    def newest(self, pool_id: str) -> int:
        """The number of the last lease of a pool; 0: there was none. Raises `StateUnusable`."""
        query = "SELECT max(number) AS number FROM leases WHERE pool_id = :pool_id"
        found = self._database.load(query, lambda row: row["number"], {"pool_id": pool_id})
        return found[0] or 0

    def page(self, pool_id: str, before: int | None, count: int) -> list[Lease]:
        """Reads leases of a pool below a number (``None``: from the newest on), newest first."""
        query = """
            SELECT body FROM leases WHERE pool_id = :pool_id AND (:before IS NULL OR number < :before)
            ORDER BY number DESC LIMIT :count
        """
        values = {"pool_id": pool_id, "before": before, "count": count}
        return self._database.load(query, lambda row: _of(Lease, row), values)


_SAVE_POOL: Final = "INSERT OR REPLACE INTO pools VALUES (:id, :created_at, :body)"
_SAVE_MEMBER: Final = "INSERT OR REPLACE INTO pool_members VALUES (:pool_id, :slot, :sandbox_id, :number, :body)"
_SAVE_LEASE: Final = "INSERT OR REPLACE INTO leases VALUES (:pool_id, :place, :number, :body)"


def _pool_values(row: PoolRow) -> dict[str, Any]:
    return {"id": row.id, "created_at": row.created_at.isoformat(), "body": encode(row)}


def _of(kind: Any, row: dict[str, Any]) -> Any:
    return decode(kind, row["body"])
