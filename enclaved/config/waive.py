"""Which protections the operator does without, and who may say so."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Final

from enclaved.model.protections import PROTECTION_NAMES

KEY: Final = "waive.protections"


def waiver_problems(names: Sequence[str]) -> Iterator[str]:
    """Finds names that are none of a protection, each as the end of a sentence that begins with the setting."""
    for name in names:
        if name not in PROTECTION_NAMES:
            close = difflib.get_close_matches(name, PROTECTION_NAMES, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(PROTECTION_NAMES)}"
            yield f"names {name!r}, which is no protection; {hint}"


def foreign_waiver(names: Sequence[str], origin: str, operators_file: str) -> str | None:
    """What is wrong with waivers of an embedded daemon, which only the operator's own file may have.

    Whoever starts such a daemon chooses its flags, its environment and the file that it reads.
    """
    if not names or origin == f"file {operators_file}":
        return None
    return f"{origin}: {KEY} of a daemon that a program starts for itself counts in {operators_file} only; set it there"
