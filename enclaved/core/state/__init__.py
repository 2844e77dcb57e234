"""What outlives a daemon that is killed: its sandboxes and executions, in a SQLite database in the state directory.

Writing rule: a row is there before the effect that it tells of (a container is created, a job is sent to a guest), and
goes after that effect is undone. So the next daemon finds a row for everything that may be there.
"""

from enclaved.core.state.chronicle import Chronicle, EndedRequest
from enclaved.core.state.database import StateUnusable
from enclaved.core.state.pools import LEASES_KEPT, Baseline, LeaseTable, MemberRow, PoolRow, PoolTable
from enclaved.core.state.rows import SandboxRow
from enclaved.core.state.store import DATABASE_NAME, ExecutionTable, SandboxTable, State

__all__ = [
    "DATABASE_NAME",
    "LEASES_KEPT",
    "Baseline",
    "Chronicle",
    "EndedRequest",
    "ExecutionTable",
    "LeaseTable",
    "MemberRow",
    "PoolRow",
    "PoolTable",
    "SandboxRow",
    "SandboxTable",
    "State",
    "StateUnusable",
]
