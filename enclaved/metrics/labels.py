"""What labels and buckets of several metrics have in common."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from enclaved.errors import EnclaveError

OTHER: Final = "other"
"""The value of a label whose own value is not on its list."""
CALL_SECONDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0),
)
"""The buckets of what callers wait for."""


def outcome(error: BaseException | None) -> str:
    """Names how something ended: ``ok``, or the class of the error that ended it."""
    if error is None:
        return "ok"
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    if not isinstance(error, EnclaveError):
        return "internal"
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
