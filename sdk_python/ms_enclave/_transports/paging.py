"""The pages of a listing, as long as they come to an end."""

from __future__ import annotations

from typing import Final

from ms_enclave.errors import InternalError

PAGES_MAX: Final = 1000
"""More than a daemon that keeps to its limits ever needs."""


class Pages:
    """Remembers the pages of one listing."""

    def __init__(self, what: str) -> None:
        """``what`` is listed; for the text of an error."""
        self._what = what
        self._seen: set[str] = set()

    def following(self, token: str) -> str:
        """Returns the token of the next page. Raises `InternalError` where the daemon goes in circles."""
        if token in self._seen or len(self._seen) >= PAGES_MAX:
            text = f"the daemon lists {self._what} without end: after {len(self._seen)} pages there is still another"
            raise InternalError(text)
        self._seen.add(token)
        return token
