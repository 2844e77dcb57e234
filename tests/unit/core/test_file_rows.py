"""What file jobs write is put into messages that every client can receive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from enclaved.core import file_rows, files
from enclaved.services import _convert as convert

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""What a gRPC client takes unless it is told otherwise."""


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/sandbox/" + "d" * 51_000, "needle"),
        ("\N{SNOWMAN}" * 300_000, "\N{SNAKE}" * 1000),
        ("/sandbox/f", "\N{SNAKE}" * 1000),
        ("", ""),
    ],
)
async def test_pages_of_matches_fit_into_messages_however_long_their_paths_are(path: str, text: str) -> None:
    async def found() -> AsyncIterator[Any]:
        for number in range(600):
            yield file_rows.search_match([path, number, text])
        yield file_rows.search_match({"truncated": True})

    sizes, matches, truncated = [], 0, False
    async for page in file_rows.pages(found(), files._match_bytes):
        message = convert.search_matches(page)
        sizes.append(message.ByteSize())
        matches += len(message.matches)
        truncated = message.truncated
    assert max(sizes) < MESSAGE_BYTES_MAX
    assert (matches, truncated) == (600, True)
