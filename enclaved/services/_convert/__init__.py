"""The only mapping between the messages of the contract and the daemon's own model.

From the wire: what is malformed raises `InvalidRequest` with the field's path. What is well-formed but too much is for
policy to judge. Onto the wire: never fails.
"""

from enclaved.services._convert.calls import (
    is_running,
    offsets,
    signal_number,
    stats_interval_s,
    terminal_size,
    tool_call,
    wait_s,
)
from enclaved.services._convert.executions import context, event, execution, run_response
from enclaved.services._convert.files import file_change, file_info, search_matches
from enclaved.services._convert.others import pull_progress, system_info, tool
from enclaved.services._convert.pools import claim_wish, claimed, lease, new_pool, pool, pool_change, pool_plan
from enclaved.services._convert.sandboxes import (
    sandbox,
    sandbox_event,
    sandbox_filter,
    sandbox_request,
    sandbox_update,
    state_change,
)

__all__ = [
    "claim_wish",
    "claimed",
    "context",
    "event",
    "execution",
    "file_change",
    "file_info",
    "is_running",
    "lease",
    "new_pool",
    "offsets",
    "pool",
    "pool_change",
    "pool_plan",
    "pull_progress",
    "run_response",
    "sandbox",
    "sandbox_event",
    "sandbox_filter",
    "sandbox_request",
    "sandbox_update",
    "search_matches",
    "signal_number",
    "state_change",
    "stats_interval_s",
    "system_info",
    "terminal_size",
    "tool",
    "tool_call",
    "wait_s",
]
