"""Every metric of the daemon, in one place. docs/metrics.md describes each.

Metrics live in a registry of their own, so that two daemons in one process (as in tests) do not share numbers. Label
sets are bounded: a value that is not on its list is counted as ``other``.
"""

from __future__ import annotations

from enclaved.metrics.labels import OTHER
from enclaved.metrics.registry import CONTENT_TYPE, Metrics

__all__ = ["CONTENT_TYPE", "OTHER", "Metrics"]
