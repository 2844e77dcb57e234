"""What a check found, and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Severity(enum.IntEnum):
    """How bad it is."""

    OK = 0
    NOTE = 1
    """Worth knowing; nothing is to be done."""
    WARNING = 2
    """Sandboxes hold, with less behind them than this host could have."""
    FAILURE = 3
    """Sandboxes do not work here, or do not hold."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    id: str
    severity: Severity
    what: str
    fix: str = ""
    """What to do; empty where nothing is."""


def ok(finding_id: str, what: str) -> Finding:
    """Returns that all is well."""
    return Finding(finding_id, Severity.OK, what)


def note(finding_id: str, what: str, fix: str = "") -> Finding:
    """Returns something worth knowing."""
    return Finding(finding_id, Severity.NOTE, what, fix)


def warning(finding_id: str, what: str, fix: str) -> Finding:
    """Returns something that should be mended."""
    return Finding(finding_id, Severity.WARNING, what, fix)


def failure(finding_id: str, what: str, fix: str) -> Finding:
    """Returns something that must be mended."""
    return Finding(finding_id, Severity.FAILURE, what, fix)
