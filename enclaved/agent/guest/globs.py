"""Patterns of the shell for paths: ``*``, ``?``, ``[abc]`` within a name, and ``**`` for any directories."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable


def matcher(pattern: str) -> Callable[[str], bool]:
    """Makes what says whether a path matches; an empty pattern matches all."""
    if not pattern:
        return lambda path: True
    import fnmatch
    import functools

    wanted = pattern.split("/")

    def matches(path: str) -> bool:
        names = path.split("/")

        @functools.lru_cache(maxsize=None)
        def rest(at: int, name: int) -> bool:
            if at == len(wanted):
                return name == len(names)
            if wanted[at] == "**":
                return rest(at + 1, name) or (name < len(names) and rest(at, name + 1))
            return name < len(names) and fnmatch.fnmatchcase(names[name], wanted[at]) and rest(at + 1, name + 1)

        return rest(0, 0)

    return matches
