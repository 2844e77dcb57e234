"""Pages of listings: how large they are, and where the next one begins."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from enclaved.errors import InvalidRequest

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1000
_TOKEN: Final = re.compile("([0-9]{1,18})-([0-9a-f]{1,8})-([0-9]{1,18})")


def checked_size(page_size: int) -> int:
    """Decides how many a page holds; 0 asks for the default. Raises `InvalidRequest`."""
    if not 0 <= page_size <= PAGE_SIZE_MAX:
        raise InvalidRequest.of("page_size", f"must be from 1 to {PAGE_SIZE_MAX}, or 0 for {PAGE_SIZE_DEFAULT}")
    return page_size or PAGE_SIZE_DEFAULT


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page begins."""

    query: int
    """Stands for the filters of the listing."""
    after: int = 0
    """The number of the last one on the page before."""
    revision: int = 0
    """That of the first page; 0: this is the first."""

    def next(self, after: int, revision: int) -> str:
        """The token of the next page."""
        return f"{after}-{self.query:x}-{revision}"


def place_in(page_token: str, query: int) -> Place:
    """Reads the token of a page. ``query`` stands for the filters.

    Raises `InvalidRequest` for a token of another listing.
    """
    if not page_token:
        return Place(query)
    found = _TOKEN.fullmatch(page_token)
    if found is None or found[2] != f"{query:x}":
        raise InvalidRequest.of("page_token", "not a token of this listing; use next_page_token with the same filters")
    return Place(query, int(found[1]), int(found[3]))


def number_after(page_token: str, query: int) -> int:
    """Reads a token that is the number of the last one on the page before. Raises as `place_in`."""
    if not page_token:
        return 0
    number, _, seen = page_token.partition("-")
    if not number.isascii() or not number.isdigit() or len(number) > 18 or seen != f"{query:x}":
        raise InvalidRequest.of("page_token", "not a token of this listing; use next_page_token with the same filters")
    return int(number)
