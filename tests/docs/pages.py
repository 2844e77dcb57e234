"""Reads the code blocks of a page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_HEADING = re.compile(r"#+ (.*)")
_FENCE = re.compile(r"```(\w*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    """Where its first line is."""
    heading: str
    """The nearest heading above it."""
    language: str
    text: str
    shown_output: str | None = None
    """The text block that follows it with nothing in between: what it prints."""

    @property
    def is_complete(self) -> bool:
        """Whether it is a program and not a piece that goes on from what is above it."""
        try:
            compile(self.text, str(self), "exec")
        except SyntaxError:
            return False  # it awaits outside of a function
        return self.text.startswith(("import ", "from "))

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(name: str, language: str | None = None) -> list[Block]:
    """Returns the blocks of a page of this checkout, in order; ``language``: only those in it."""
    found: list[Block] = []
    heading = ""
    lines = iter(enumerate((ROOT / name).read_text().splitlines(), 1))
    gap = True
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            heading = matched[1] if (matched := _HEADING.match(line)) else heading
            gap = gap or bool(line.strip())
            continue
        inner = []
        for _, text in lines:
            if text == "```":
                break
            inner.append(text + "\n")
        block = Block(name, number + 1, heading, fence[1], "".join(inner))
        if block.language == "text" and found and not gap:
            last = found.pop()
            block = Block(last.page, last.line, last.heading, last.language, last.text, shown_output=block.text)
        found.append(block)
        gap = False
    return [block for block in found if language in (None, block.language)]
