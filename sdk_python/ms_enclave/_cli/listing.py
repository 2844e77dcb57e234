"""Shows sandboxes, executions and contexts: as a table for a person, as JSON for a program."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ms_enclave._model import ContextInfo, ExecutionInfo, SandboxInfo

if TYPE_CHECKING:  # tables take a while to load, and most commands show none
    from rich.table import Table
    from rich.text import Text

_COLORS = {"running": "green", "error": "red", "stopped": "yellow"}
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def as_json(info: SandboxInfo) -> dict[str, Any]:
    """Returns what is worth knowing of a sandbox."""
    labels = info.metadata.get("labels", {})
    return {
        "id": info.id,
        "status": info.status.value,
        "image": info.config.get("image"),
        "memory_limit": info.config.get("memory_limit"),
        "cpu_limit": info.config.get("cpu_limit"),
        "active_executions": info.metadata.get("active_executions", 0),
        "created_at": info.created_at.astimezone().isoformat(),
        "expires_at": info.metadata.get("expires_at"),
        "labels": {name: value for name, value in labels.items() if not name.startswith("ms-enclave/")},
        "state_reason": info.metadata.get("state_reason"),
    }


def show(infos: Sequence[SandboxInfo]) -> None:
    """Prints a table. Where no person reads, its columns are as wide as they need to be, and never coloured."""
    rows = table("ID", "STATUS", "IMAGE", "MEMORY", "CPU", "RUNS", "CREATED")
    for info in infos:
        shown = as_json(info)
        status = info.status.value
        reason = f" ({shown['state_reason']})" if shown["state_reason"] else ""
        rows.add_row(
            info.id,
            text(status, _COLORS.get(status, "")) + text(reason),
            text(str(shown["image"])),
            str(shown["memory_limit"]),
            f"{shown['cpu_limit']:g}" if isinstance(shown["cpu_limit"], int | float) else "",
            str(shown["active_executions"]),
            _ago(info.created_at),
        )
    print_table(rows)


def show_executions(infos: Sequence[ExecutionInfo]) -> None:
    """Prints a table of executions."""
    rows = table("ID", "SANDBOX", "TOOL", "STATUS", "CONTEXT", "READERS", "STARTED")
    for info in infos:
        if info.finished is not None:
            status = text(info.finished.verdict.value, "" if info.finished.exit_code == 0 else "red")
        else:
            status = text("waits for input" if info.awaiting_input else "running", "green")
        rows.add_row(
            info.id, info.sandbox_id, text(info.tool), status, info.context, str(info.readers), _ago(info.created_at)
        )
    print_table(rows)


def show_contexts(infos: Sequence[ContextInfo]) -> None:
    """Prints a table of contexts."""
    rows = table("NAME", "STATUS", "CALLS", "RUNS", "WAITING", "OPENED")
    for info in infos:
        status = text("alive", "green") if info.alive else text("dead", "red")
        rows.add_row(
            text(info.name), status, str(info.calls), info.execution_id, str(info.queued), _ago(info.created_at)
        )
    print_table(rows)


def table(*names: str) -> Table:
    """Makes an empty table."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        made.add_column(name, no_wrap=name != "STATUS")
    return made


def text(content: str, style: str = "") -> Text:
    """Makes a cell that shows its content as it is: what looks like markup in it is none."""
    from rich.text import Text

    return Text(content, style=style)


def print_table(made: Table) -> None:
    """Prints a table. Where no person reads, it is as wide as it needs to be, and never coloured."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=1000, no_color=True)
    console.print(made)


def _ago(moment: datetime) -> str:
    passed_s = max(0, int((datetime.now(moment.tzinfo) - moment).total_seconds()))
    for size, unit in _UNITS:
        if passed_s >= size:
            return f"{passed_s // size} {unit} ago"
    return f"{passed_s} s ago"
