"""Members of pools of an earlier daemon: which are taken up, and when they may be used again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from enclaved.core.executions import Execution, Executions
from enclaved.core.lending import Member
from enclaved.core.record import SandboxRecord
from enclaved.core.state import MemberRow, PoolRow
from enclaved.model import MemberState, PoolOrigin, SandboxState

BY_RESTART: Final = "the daemon, which was started again: nobody can ask for its result"
LOOK_EVERY_S: Final = 0.5


class KeptMembers:
    """What an earlier daemon wrote down of pools, of which somebody knows."""

    def __init__(self, pools: Iterable[PoolRow], members: Iterable[MemberRow]) -> None:
        self.pools = tuple(pools)
        known = {row.id for row in self.pools if self.goes_on(row)}
        self.members = tuple(row for row in members if row.pool_id in known)
        self._numbers: Mapping[tuple[str, str], int] = {
            (row.pool_id, row.sandbox_id): row.number for row in self.members
        }

    @staticmethod
    def goes_on(row: PoolRow) -> bool:
        """Whether somebody knows of a pool, and nobody has asked for its end."""
        return (row.made or row.origin is PoolOrigin.OPERATOR) and not row.deleting

    def has(self, pool_id: str, sandbox_id: str, number: int) -> bool:
        """Whether a sandbox is a member that was made to the end. Others were half made, and nobody has used them."""
        return self._numbers.get((pool_id, sandbox_id)) == number


def member_of(row: MemberRow, record: SandboxRecord | None) -> Member:
    """The slot of an earlier daemon, with its sandbox if that is still there."""
    state = MemberState.RESETTING if record is not None else MemberState.REPLACING
    return Member(row.slot, record=record, baseline=row.baseline, wanted_id=row.sandbox_id, state=state)


async def until_free(record: SandboxRecord, executions: Executions) -> None:
    """Waits until nothing runs any more in a sandbox that was busy when the earlier daemon ended.

    Runs whose callers have named them go on: who asks again gets the result. The others end at once.
    """
    for execution in _running(record, executions):
        if not execution.row.chosen:
            execution.cancel(BY_RESTART)
    while record.state is SandboxState.RUNNING and (running := _running(record, executions)):
        await asyncio.wait([execution.ended for execution in running], timeout=LOOK_EVERY_S)


def _running(record: SandboxRecord, executions: Executions) -> list[Execution]:
    page = executions.list(sandbox_id=record.id, running=True) if not record.is_forgotten else None
    return [executions.get(info.id) for info in page.executions] if page is not None else []
