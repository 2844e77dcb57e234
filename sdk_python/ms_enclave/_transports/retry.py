"""How often and how long to try again while a daemon does not answer."""

from __future__ import annotations

from ms_enclave.errors import DaemonUnavailable, EnclaveError, Unavailable

_UNREACHED_WAITS_S = (0.05, 0.2)
"""For an address where nobody ever answered: most likely it is wrong, and its user wants to know soon."""
_REACHED_WAITS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
"""For a daemon that answered before: most likely it is being restarted."""
_ASKED_WAITS = 2
"""How often to follow a daemon that says when to try again."""
_ASKED_WAIT_S_MAX = 5.0


class Retries:
    """The waits of one call. Every call has its own."""

    def __init__(self, *, reached: bool, allowed: bool = True) -> None:
        self._waits_s = list(_REACHED_WAITS_S if reached else _UNREACHED_WAITS_S) if allowed else []
        self._asked_left = _ASKED_WAITS if allowed else 0
        self.used = False
        """Whether there was more than one attempt."""

    def wait_s(self, error: EnclaveError) -> float | None:
        """Returns the seconds to wait before the next attempt; ``None`` to give up."""
        wait_s: float | None = None
        if isinstance(error, DaemonUnavailable):
            wait_s = self._waits_s.pop(0) if self._waits_s else None
        elif isinstance(error, Unavailable) and self._asked_left:
            self._asked_left -= 1
            wait_s = min(1.0 if error.retry_after_s is None else error.retry_after_s, _ASKED_WAIT_S_MAX)
        self.used = self.used or wait_s is not None
        return wait_s
