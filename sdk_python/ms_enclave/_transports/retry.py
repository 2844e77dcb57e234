"""How often and how long to try again while a daemon does not answer."""

from __future__ import annotations

import math
import os
import time
from typing import Final

from ms_enclave.errors import (
    DaemonUnavailable,
    EnclaveError,
    ErrorDetails,
    ExecutionUnreachable,
    InvalidRequest,
    ShuttingDown,
    Unavailable,
)

RECONNECT_VARIABLE: Final = "MS_ENCLAVE_RECONNECT_S"
RECONNECT_S: Final = 60.0
"""How long to try to reach an execution again, unless the variable says otherwise."""

_UNREACHED_WAITS_S = (0.05, 0.2)
"""For an address where nobody ever answered: most likely it is wrong, and its user wants to know soon."""
_REACHED_WAITS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0)
"""For a daemon that answered before: most likely it is being restarted, once its running calls have finished."""
_ASKED_WAITS = 2
"""How often to follow a daemon that says when to try again."""
_ASKED_WAIT_S_MAX = 5.0


class Retries:
    """The waits of one call. Every call has its own."""

    def __init__(self, *, reached: bool, allowed: bool = True) -> None:
        self._reached = reached
        self._waits_s = list(_REACHED_WAITS_S if reached else _UNREACHED_WAITS_S) if allowed else []
        self._asked_left = _ASKED_WAITS if allowed else 0
        self.used = False
        """Whether there was more than one attempt."""
        self.may_be_done = False
        """Whether an attempt that failed may have done what was asked for, and only its answer is missing."""

    def wait_s(self, error: EnclaveError) -> float | None:
        """Returns the seconds to wait before the next attempt; ``None`` to give up."""
        wait_s: float | None = None
        if isinstance(error, ShuttingDown) and self._waits_s and not self._reached:
            self._waits_s, self._reached = list(_REACHED_WAITS_S), True  # it did answer
        if isinstance(error, DaemonUnavailable | ShuttingDown):
            wait_s = self._waits_s.pop(0) if self._waits_s else None
        elif isinstance(error, Unavailable) and self._asked_left:
            self._asked_left -= 1
            wait_s = min(1.0 if error.retry_after_s is None else max(0.0, error.retry_after_s), _ASKED_WAIT_S_MAX)
        self.used = self.used or wait_s is not None
        return wait_s

    def last_word(self, error: EnclaveError) -> EnclaveError:
        """Returns what to raise when there is no other attempt."""
        return error


class Patience(Retries):
    """The waits of one execution: longer than those of a call, since it goes on meanwhile and can be taken up again.

    Before it is known to exist, only a daemon that answered before is waited for so long.
    """

    def __init__(self, execution_id: str, *, reached: bool) -> None:
        super().__init__(reached=reached)
        self.known = False
        """Whether the daemon ever said that it exists."""
        self._execution_id = execution_id
        self._limit_s = reconnect_s()
        self._since: float | None = None
        self._attempts = 0

    def renew(self) -> None:
        """Starts anew: it was reached."""
        self._since, self._attempts = None, 0

    def wait_s(self, error: EnclaveError) -> float | None:
        restarting = self._reached and isinstance(error, DaemonUnavailable | ShuttingDown)
        if not self.known and not restarting:
            return super().wait_s(error)
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        left_s = self._limit_s - (now - self._since)
        if left_s <= 0:
            return None
        wait_s = _REACHED_WAITS_S[min(self._attempts, len(_REACHED_WAITS_S) - 1)]
        if error.retry_after_s is not None:
            wait_s = min(max(_REACHED_WAITS_S[0], error.retry_after_s), _ASKED_WAIT_S_MAX)
        self._attempts += 1
        self.used = True
        return min(wait_s, left_s)

    def last_word(self, error: EnclaveError) -> EnclaveError:
        if not self.known:
            return error
        text = (
            f"execution {self._execution_id} was not reached again within {self._limit_s:g} seconds: {error.message}; "
            f"it may go on meanwhile: get_execution({self._execution_id!r}) of its sandbox takes it up when the daemon "
            f"answers, and {RECONNECT_VARIABLE} sets how long to try"
        )
        details = ErrorDetails({"execution_id": self._execution_id}, retry_after_s=error.retry_after_s)
        return ExecutionUnreachable(text, details)


def reconnect_s() -> float:
    """Returns for how many seconds to try to reach an execution again. Raises `InvalidRequest` naming the variable."""
    told = os.environ.get(RECONNECT_VARIABLE, "")
    try:
        found = float(told) if told else RECONNECT_S
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise InvalidRequest(f"{RECONNECT_VARIABLE}: {told!r} is no number of seconds")
    return found
