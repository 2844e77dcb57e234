"""Pages of listings: how large they are, and where the next one begins."""

from __future__ import annotations

from typing import Final

from enclaved.errors import InvalidRequest

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1000


def checked_size(page_size: int) -> int:
    """Decides how many a page holds; 0 asks for the default. Raises `InvalidRequest`."""
    if not 0 <= page_size <= PAGE_SIZE_MAX:
        raise InvalidRequest.of("page_size", f"must be from 1 to {PAGE_SIZE_MAX}, or 0 for {PAGE_SIZE_DEFAULT}")
    return page_size or PAGE_SIZE_DEFAULT


def start_after(page_token: str, query: int) -> int:
    """The number after which a page begins: 0, or what the token of a page with the same filters says.

    ``query`` stands for the filters. Raises `InvalidRequest` for a token of another listing.
    """
    if not page_token:
        return 0
    number, _, seen = page_token.partition("-")
    if not number.isascii() or not number.isdigit() or len(number) > 18 or seen != f"{query:x}":
        raise InvalidRequest.of("page_token", "not a token of this listing; use next_page_token with the same filters")
    return int(number)
