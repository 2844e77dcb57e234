"""What is written down of each use of a pool's members, when it is over."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from enclaved.core.lending import Member
from enclaved.core.state import LeaseTable
from enclaved.model import Lease, LeaseKind, LeaseOutcome, ResetProof, Verdict


@dataclass(slots=True)
class Use:
    """One use of a member, as far as it is known when the member comes back."""

    kind: LeaseKind
    created_at: datetime
    waited_s: float
    held_since: float
    """Monotonic time."""
    execution_id: str = ""
    tool: str = ""
    verdict: Verdict | None = None

    @classmethod
    def begins(cls, kind: LeaseKind, waited_s: float, tool: str = "") -> Use:
        """A use that begins now."""
        return cls(kind, datetime.now(UTC), waited_s, time.monotonic(), tool=tool)


class LeaseBook:
    """Numbers the leases of one pool and writes them down. Nobody waits for that."""

    def __init__(self, pool_id: str, table: LeaseTable) -> None:
        self._pool_id, self._table = pool_id, table
        self._newest = table.newest(pool_id)

    def note(
        self,
        member: Member,
        use: Use,
        outcome: LeaseOutcome,
        reason: str = "",
        proof: ResetProof | None = None,
        began: float | None = None,
    ) -> None:
        """Notes a use that is over; ``began`` is the monotonic time at which the reset after it began, if one did."""
        now = time.monotonic()
        self._newest += 1
        lease = Lease(
            number=self._newest,
            pool_id=self._pool_id,
            slot=member.slot,
            sandbox_id=member.sandbox_id,
            kind=use.kind,
            execution_id=use.execution_id,
            tool=use.tool,
            verdict=use.verdict,
            created_at=use.created_at,
            waited_s=round(use.waited_s, 6),
            held_s=round((began or now) - use.held_since, 6),
            reset_s=round(now - began, 6) if began is not None else 0.0,
            outcome=outcome,
            reason=reason[:500],
            proof=proof,
        )
        self._table.note(lease)
