"""Which modules a program may import: a guard rail, since the program could take the rail away.

It holds for what the program itself imports: its source, and modules in the sandbox's own directories. What installed
libraries import for themselves is theirs.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional

_ALWAYS = ("__future__",)


class ImportRules:
    """Stands in the place of ``__import__`` and ``importlib.import_module``."""

    def __init__(self, namespace: Dict[str, Any], working_dir: str) -> None:
        import builtins
        import importlib

        self.builtins, self.importlib = builtins, importlib
        self.import_name, self.import_by_name = builtins.__import__, importlib.import_module
        self.namespace = namespace
        # Where modules of the program lie, but for what it installed.
        self.own_places = (working_dir + "/", "/tmp/")
        self.installed = os.path.join(working_dir, ".local") + "/"
        self.allowed: Optional[List[str]] = None
        self.blocked: List[str] = []

    def set(self, rules: Optional[Dict[str, Any]]) -> None:
        """Takes up the rules of a call; None: there are none."""
        self.allowed = rules["allowed"] if rules else None
        self.blocked = rules["blocked"] if rules else []
        # Not what stands there now: a program may have put itself around us.
        self.builtins.__import__ = self.import_checked if rules else self.import_name
        self.importlib.import_module = self.import_by_name_checked if rules else self.import_by_name

    def import_checked(
        self,
        name: str,
        globals: Any = None,  # noqa: A002 - the names are those of __import__, for calls with keywords
        locals: Any = None,  # noqa: A002
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        """Imports as ``__import__`` does, or raises ImportError."""
        # A list comes from functions written in C, which import what they need in the name of their caller.
        if type(fromlist) is not list and self.is_of_program(globals):
            self.check(self.absolute(name, globals, level), fromlist or ())
        return self.import_name(name, globals, locals, fromlist, level)

    def import_by_name_checked(self, name: str, package: Optional[str] = None) -> Any:
        """Imports as ``importlib.import_module`` does, or raises ImportError."""
        if self.is_of_program(sys._getframe(1).f_globals):
            level = len(name) - len(name.lstrip("."))
            self.check(self.absolute(name[level:], {"__package__": package}, level), ())
        return self.import_by_name(name, package)

    def is_of_program(self, names: Any) -> bool:
        """Whether the module with these names is the program, or one of its own."""
        if not isinstance(names, dict) or names is self.namespace:
            return True
        file = names.get("__file__")
        if isinstance(file, str):
            return file.startswith(self.own_places) and not file.startswith(self.installed)
        return names.get("__spec__") is None

    def absolute(self, name: str, names: Any, level: int) -> str:
        """The whole name of a module that may be named relative to another."""
        package = names.get("__package__") if level and isinstance(names, dict) else None
        if not isinstance(package, str):
            return str(name)
        above = package.split(".")[: len(package.split(".")) - level + 1]
        return ".".join(above + ([str(name)] if name else []))

    def check(self, name: str, members: Iterable[Any]) -> None:
        """Raises ImportError if a module, or one of these in it, may not be imported."""
        if name in _ALWAYS:
            return
        whole = ["%s.%s" % (name, member) for member in members if isinstance(member, str) and member != "*"]
        for each in [name] + whole:
            if _is_within(each, self.blocked):
                raise ImportError("importing %r is not allowed here (blocked_modules)" % each, name=each)
        if self.allowed is None or _is_within(name, self.allowed):
            return
        if not whole or not all(_is_within(each, self.allowed) for each in whole):
            known = ", ".join(self.allowed)[:200] or "none"
            raise ImportError("importing %r is not allowed here (allowed_modules: %s)" % (name, known), name=name)


def _is_within(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)
