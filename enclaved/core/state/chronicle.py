"""The tables of what happened to sandboxes: the changes that others follow, and requests whose sandbox is gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from enclaved.core.state.database import Database
from enclaved.core.state.rows import decode, encode
from enclaved.model import EMPTY, SandboxEvent

CHANGES_KEPT: Final = 10_000
"""Changes that are kept at least, those of all sandboxes together."""
REQUESTS_KEPT: Final = 10_000
"""Ended requests that are remembered at most, about."""
REQUEST_KEPT_S: Final = 600.0
"""How long a request is remembered beyond the life of the sandbox that it made."""
CHANGES_AT_ONCE: Final = 10
"""Each of those who watch holds so many, and a change shows all of its sandbox."""
PRUNE_EVERY: Final = 256
_NO_CHANGE: Final = "null"

Write = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """A request that made a sandbox, which is gone."""

    tenant: str
    request_id: str
    request_digest: str
    sandbox_id: str
    ended_at: datetime

    @property
    def write(self) -> Write:
        """Remembers it."""
        return _END_REQUEST, {
            "tenant": self.tenant,
            "request_id": self.request_id,
            "request_digest": self.request_digest,
            "sandbox_id": self.sandbox_id,
            "ended_at": self.ended_at.isoformat(),
        }


class Chronicle:
    """Numbered changes, the newest `CHANGES_KEPT` of them, and ended requests."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._until_prune = PRUNE_EVERY

    def write_of(self, event: SandboxEvent) -> Write:
        """What is to be written of a change. The environment of sandboxes stays out: it may hold secrets."""
        spec = replace(event.sandbox.spec, env_vars=EMPTY)
        body = encode(replace(event, sandbox=replace(event.sandbox, spec=spec)))
        return _SAVE_CHANGE, {"revision": event.revision, "sandbox_id": event.sandbox.id, "body": body}

    def begin(self, revision: int) -> None:
        """Marks a revision that is no change: a daemon began there."""
        values = {"revision": revision, "sandbox_id": "", "body": _NO_CHANGE}
        self._database.write_surely("begin", _SAVE_CHANGE, values)

    def newest(self) -> int:
        """The number of the newest change; 0: there is none."""
        return self._number("SELECT max(revision) AS found FROM sandbox_changes")

    def has(self, revision: int) -> bool:
        """Whether all changes after this one are kept: it is one that was given out and not dropped."""
        query = "SELECT count(*) AS found FROM sandbox_changes WHERE revision = :revision"
        return self._number(query, revision=revision) > 0

    def after(self, revision: int) -> list[SandboxEvent | int]:
        """The next changes, in their order, or only the revision where a daemon began. Raises `StateUnusable`."""
        query = "SELECT revision, body FROM sandbox_changes WHERE revision > :revision ORDER BY revision LIMIT :most"
        return self._database.load(query, _change, {"revision": revision, "most": CHANGES_AT_ONCE})

    def request(self, tenant: str, request_id: str) -> EndedRequest | None:
        """Finds a request whose sandbox is gone since not long ago."""
        query = "SELECT * FROM ended_requests WHERE tenant = :tenant AND request_id = :request_id"
        found = self._database.load(query, _ended_request, {"tenant": tenant, "request_id": request_id})
        if not found or datetime.now(UTC) - found[0].ended_at > timedelta(seconds=REQUEST_KEPT_S):
            return None
        return found[0]

    def prune(self) -> None:
        """Drops, now and then, what is old."""
        self._until_prune -= 1
        if self._until_prune > 0:
            return
        self._until_prune = PRUNE_EVERY
        self._database.write_surely("prune changes", _PRUNE_CHANGES, {"kept": CHANGES_KEPT})
        before = (datetime.now(UTC) - timedelta(seconds=REQUEST_KEPT_S)).isoformat()
        self._database.write_surely("prune requests", _PRUNE_REQUESTS, {"before": before, "kept": REQUESTS_KEPT})

    def _number(self, query: str, **values: int) -> int:
        return self._database.load(query, lambda found: int(found["found"] or 0), values)[0]


_SAVE_CHANGE: Final = "INSERT OR REPLACE INTO sandbox_changes VALUES (:revision, :sandbox_id, :body)"
_PRUNE_CHANGES: Final = """
    DELETE FROM sandbox_changes WHERE revision <=
        (SELECT revision FROM sandbox_changes ORDER BY revision DESC LIMIT 1 OFFSET :kept)
"""
_END_REQUEST: Final = """
    INSERT OR REPLACE INTO ended_requests VALUES (:tenant, :request_id, :request_digest, :sandbox_id, :ended_at)
"""
_PRUNE_REQUESTS: Final = """
    DELETE FROM ended_requests WHERE ended_at < :before OR ended_at <=
        (SELECT ended_at FROM ended_requests ORDER BY ended_at DESC LIMIT 1 OFFSET :kept)
"""


def _change(values: dict[str, Any]) -> SandboxEvent | int:
    if values["body"] == _NO_CHANGE:
        return int(values["revision"])
    event: SandboxEvent = decode(SandboxEvent, values["body"])
    return event


def _ended_request(values: dict[str, Any]) -> EndedRequest:
    return EndedRequest(**{**values, "ended_at": datetime.fromisoformat(values["ended_at"])})
