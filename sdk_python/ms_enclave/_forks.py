"""Forks, on systems that have them. Elsewhere (Windows) the package is a client of daemons that run somewhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

CAN_FORK: Final = hasattr(os, "register_at_fork")
"""Whether processes of this system fork. Where they do not, no daemon can run either."""


def at_fork(
    *,
    before: Callable[[], Any] | None = None,
    after_in_parent: Callable[[], Any] | None = None,
    after_in_child: Callable[[], Any] | None = None,
) -> None:
    """Registers what is called around every fork of this process. Does nothing where there are none."""
    given = {"before": before, "after_in_parent": after_in_parent, "after_in_child": after_in_child}
    if CAN_FORK:
        os.register_at_fork(**{name: call for name, call in given.items() if call is not None})
