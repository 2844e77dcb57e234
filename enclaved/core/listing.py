"""Which sandboxes a listing shows, a page at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from enclaved.core.pages import checked_size, place_in
from enclaved.core.record import SandboxRecord
from enclaved.model import Sandbox, SandboxFilter, SandboxPage


def page_of(
    records: Iterable[SandboxRecord], wanted: SandboxFilter, revision: int, page_size: int = 0, page_token: str = ""
) -> SandboxPage:
    """Picks a page of records, which come oldest first. Raises `InvalidRequest` for a bad size or token.

    A page goes on after the last sandbox of the page before, whatever came and went meanwhile, and keeps the revision
    of the first page.
    """
    size = checked_size(page_size)
    place = place_in(page_token, zlib.crc32(repr(_key(wanted)).encode("utf-8", "surrogatepass")))
    revision = place.revision or revision
    page: list[tuple[int, Sandbox]] = []
    more = False
    for record in records:
        if record.number <= place.after:
            continue
        sandbox = record.snapshot()
        if not wanted.shows(sandbox):
            continue
        if len(page) == size:
            more = True
            break
        page.append((record.number, sandbox))
    token = place.next(page[-1][0], revision) if more else ""
    return SandboxPage(tuple(sandbox for _, sandbox in page), token, revision)


def _key(wanted: SandboxFilter) -> object:
    times = (wanted.created_before, wanted.created_after)
    return sorted(wanted.labels.items()), sorted(wanted.states), wanted.tenant, times
