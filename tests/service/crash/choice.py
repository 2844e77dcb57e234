"""Which points are tried: all of them takes minutes, which a full run has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")


def chosen(config: pytest.Config, cases: Sequence[T], share: int) -> Sequence[T]:
    """All cases in a run with ``scripts/test --full`` or where tests are named, else one of ``share``."""
    is_full = config.getoption("--hypothesis-profile") == "full" or config.getoption("keyword")
    return cases if is_full else cases[::share]
