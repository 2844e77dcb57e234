"""Writes roles as a policy file would say them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from enclaved.core.policy import LIMIT_NAMES, RULE_NAMES, Role


class RoleLine(NamedTuple):
    """One line of a role."""

    table: str
    """The table that it stands in."""
    key: str
    value: Any
    origin: str

    @property
    def text(self) -> str:
        """The line as TOML."""
        return f"{self.key} = {as_toml(self.value)}"


def role_lines(role: Role) -> Iterator[RoleLine]:
    """Says everything that a role says, numbers first."""
    table = f"roles.{role.name}"
    for name in LIMIT_NAMES:
        yield RoleLine(table, name, getattr(role.limits, name), role.origin(name))
    for name in RULE_NAMES:
        if name != "tool_options":
            yield RoleLine(table, name, _plain(name, getattr(role, name)), role.origin(name))
    for tool, rule in role.tool_options.items():
        key = f"tool_options.{tool}"
        if rule.allowed is not None:
            yield RoleLine(f"{table}.{key}", "allowed", list(rule.allowed), role.origin(key))
        yield RoleLine(f"{table}.{key}", "forced", dict(rule.forced), role.origin(key))


def as_toml(value: object) -> str:
    """Writes a value as in a configuration file."""
    match value:
        case Mapping():
            inner = ", ".join(f"{json.dumps(str(name))} = {as_toml(each)}" for name, each in value.items())
            return f"{{ {inner} }}" if inner else "{}"
        case list() | tuple():
            return f"[{', '.join(as_toml(each) for each in value)}]"
        case _:
            return json.dumps(value, ensure_ascii=False)


def _plain(name: str, value: Any) -> Any:
    if name == "volumes":
        return [
            {"path": each.path, "mode": "rw" if each.writable else "ro", **({"name": each.name} if each.name else {})}
            for each in value
        ]
    if name == "ports":
        return ["any" if each.last == 0 else str(each) for each in value]
    return [str(each) for each in value] if isinstance(value, tuple) else value
