"""What the daemon exports, as Prometheus sees it: every series name with its labels."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.docs.test_metrics import documented

OF_THE_PROCESS = {
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
}
OF_PROMETHEUS = {"up"}
ADDED_LABELS = {"instance", "job"}

_SELECTOR = re.compile(r"\b(up|(?:enclaved|grpc_server|process)_\w+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')


def series() -> Mapping[str, frozenset[str]]:
    """Every series there can be; test_metrics.py shows that the documented metrics are the exported ones."""
    found = {name: frozenset[str]() for name in OF_THE_PROCESS | OF_PROMETHEUS}
    for name, (kind, labels) in documented().items():
        if kind == "histogram":
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[name] = labels
    return found


def unknown(expression: str) -> list[str]:
    """What an expression asks for that is never there: series, and labels of series."""
    there = series()
    wrong = []
    for name, matchers in _SELECTOR.findall(expression):
        if name not in there:
            wrong.append(name)
            continue
        known = there[name] | ADDED_LABELS
        wrong += [f"{name}{{{label}}}" for label in _LABEL.findall(matchers) if label not in known]
    return wrong
