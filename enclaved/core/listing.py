"""Which sandboxes a listing shows, a page at a time."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping

from enclaved.core.pages import checked_size, start_after
from enclaved.core.record import SandboxRecord
from enclaved.model import EMPTY, SandboxPage, SandboxState


def page_of(
    records: Iterable[SandboxRecord],
    *,
    labels: Mapping[str, str] = EMPTY,
    states: Collection[SandboxState] = (),
    page_size: int = 0,
    page_token: str = "",
) -> SandboxPage:
    """Picks a page of records, which come oldest first. Raises `InvalidRequest` for a bad size or token."""
    size = checked_size(page_size)
    query = zlib.crc32(repr((sorted(labels.items()), sorted(states))).encode())
    after = start_after(page_token, query)
    found = [
        record
        for record in records
        if record.number > after
        and (not states or record.state in states)
        and all(record.labels.get(name) == value for name, value in labels.items())
    ]
    page = found[:size]
    token = f"{page[-1].number}-{query:x}" if len(found) > len(page) else ""
    return SandboxPage(tuple(record.snapshot() for record in page), token)
