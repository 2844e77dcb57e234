"""Reads the policy file: a TOML file of roles. A file with a mistake is used in no part."""

from __future__ import annotations

import difflib
import posixpath
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from enclaved.config.errors import ConfigError
from enclaved.config.policy_checks import role_problems, user_problems
from enclaved.config.policy_tables import PolicyTables, RoleTable, line_near, lines_of
from enclaved.config.reading import read_file
from enclaved.core.policy import LIMIT_NAMES, PortRange, Role, Rules, ToolRule, Tools, VolumeRule
from enclaved.model import DEFAULT_ROLE

DEFAULT_POLICY_FILE: Final = Path("/etc/enclaved/policy.toml")
FILE_BYTES_MAX: Final = 1024 * 1024
ROLES_MAX: Final = 256
WORKING_DIR: Final = "."
"""The path of a volume that stands for the directory in which the program works that embeds the daemon."""

_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_WORDS: Final = {
    "Input should be": "must be",
    "String should": "must",
    "List should": "must",
    "Extra inputs are not permitted": "is no rule",
    "Field required": "is missing",
    "Value should": "must",
}
_PAIRS: Final = (
    ("memory_default_bytes", "memory_max_bytes"),
    ("cpu_default", "cpu_max"),
    ("pids_default", "pids_max"),
    ("timeout_default_s", "timeout_max_s"),
    ("ttl_default_s", "ttl_max_s"),
    ("idle_timeout_default_s", "idle_timeout_max_s"),
    ("output_default_bytes", "output_max_bytes"),
    ("working_dir_size_default_bytes", "working_dir_size_max_bytes"),
    ("tmp_size_default_bytes", "tmp_size_max_bytes"),
)
"""Defaults that a role which sets the maximum alone has lowered."""


def read_policy(path: Path, built_in: Rules, *, tools: Tools, working_dir: str = "") -> Rules:
    """Reads a policy file. Roles that it does not name stay as they are compiled in.

    Raises `ConfigError` with every problem at once, each with its line.
    """
    try:
        data = read_file(path, FILE_BYTES_MAX)
    except OSError as error:
        raise ConfigError([f"policy file {path}: cannot be read: {error.strerror}"]) from error
    except ValueError as error:
        raise ConfigError([f"policy file {str(path)!r}: cannot be read: {error}"]) from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError([f"policy file {path}: has more than {FILE_BYTES_MAX} bytes"])
    try:
        text = data.decode()
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # bytes that are no text, numbers too long, tables too deep
        raise ConfigError([f"policy file {path}: is not TOML: {error}"]) from error
    return _Reading(path, text, tables, built_in, tools, working_dir).rules()


class _Reading:
    """One reading of one file."""

    def __init__(
        self, path: Path, text: str, tables: dict[str, Any], built_in: Rules, tools: Tools, working_dir: str
    ) -> None:
        self._path, self._tables, self._built_in = path, tables, built_in
        self._tools, self._working_dir = tools, working_dir
        self._lines = lines_of(text)
        self._problems: list[tuple[int, str]] = []
        self._resolved: dict[str, Role] = {}

    def rules(self) -> Rules:
        """Puts the roles together. Raises `ConfigError`."""
        try:
            roles = PolicyTables.model_validate(self._tables).roles
        except ValidationError as error:
            for detail in error.errors():
                key = ".".join(str(part) for part in detail["loc"] if part != "[key]")
                self._problem(key, _reason(detail["loc"], detail["msg"]))
            raise self._error() from None
        if len(roles) > ROLES_MAX:
            self._problem("roles", f"has {len(roles)} roles; at most {ROLES_MAX} are possible")
        for name, table in roles.items():
            self._check_extends(name, table, roles)
        if not self._problems:
            for name in roles:
                self._resolve(name, roles)
        if not self._problems:
            for name, role in self._resolved.items():
                known = (*self._built_in.runtime_classes,)
                for key, text in role_problems(role, self._tools, self._built_in.protected, known):
                    self._problem(f"roles.{name}.{key}", text)
            for name, text in user_problems(self._resolved):
                self._problem(f"roles.{name}.users", text)
        if self._problems:
            raise self._error()
        # Those of the file first: of two roles that name somebody by a pattern, the first counts.
        kept = {name: role for name, role in self._built_in.roles.items() if name not in self._resolved}
        in_order = {name: self._resolved[name] for name in roles}
        return replace(self._built_in, roles={**in_order, **kept}, origin=f"file {self._path}")

    def _problem(self, key: str, text: str) -> None:
        line = line_near(self._lines, key)
        where = f", line {line}" if line else ""
        self._problems.append((line, f"policy file {self._path}{where}: {key} {text}"))

    def _error(self) -> ConfigError:
        return ConfigError([text for _, text in sorted(self._problems)])

    def _check_extends(self, name: str, table: RoleTable, roles: Mapping[str, RoleTable]) -> None:
        parent = table.extends
        if parent is None:
            return
        key = f"roles.{name}.extends"
        if parent not in roles and parent not in self._built_in.roles:
            self._problem(key, f"names {parent!r}, and there is no such role{_nearest(parent, roles)}")
            return
        seen = {name}
        while parent in roles and parent not in seen:
            seen.add(parent)
            parent = roles[parent].extends or ""
        if parent == name and not (name in self._built_in.roles and table.extends == name):
            self._problem(key, "leads back to the role itself")

    def _resolve(self, name: str, roles: Mapping[str, RoleTable]) -> Role:
        if name in self._resolved:
            return self._resolved[name]
        table = roles[name]
        if table.extends is not None and table.extends in roles and table.extends != name:
            parent = self._resolve(table.extends, roles)
        else:
            parent = self._built_in.roles.get(table.extends or name) or self._built_in.roles[DEFAULT_ROLE]
        role = self._resolved[name] = self._extended(name, table, parent)
        return role

    def _extended(self, name: str, table: RoleTable, parent: Role) -> Role:
        """A role with what its table says, and for the rest what its parent says."""
        said = {key: value for key, value in table if value is not None and key != "extends"}
        own = {key: self._origin(name, key) for key in said if key != "tool_options"}
        origins = {**{key: text for key, text in parent.origins.items() if key != "users"}, **own}
        numbers = {key: value for key, value in said.items() if key in LIMIT_NAMES}
        for default, maximum in _PAIRS:
            most = numbers.get(maximum)
            if most and default not in numbers and getattr(parent.limits, default) > most:
                numbers[default] = most
                origins[default] = f"{origins[maximum]}: lowered to {maximum}"
        limits = parent.limits
        try:
            limits = replace(limits, **numbers)
        except ValueError as error:
            key, _, text = str(error).partition(" ")
            shown_key = (
                key if key in said else next((own for own in said if own.split("_")[0] == key.split("_")[0]), key)
            )
            self._problem(f"roles.{name}.{shown_key}", text if shown_key == key else f"contradicts {key}, which {text}")
        options = dict(parent.tool_options)
        for tool, rule in (table.tool_options or {}).items():
            inherited = options.get(tool, ToolRule())
            options[tool] = ToolRule(
                inherited.allowed if rule.allowed is None else tuple(rule.allowed),
                inherited.forced if rule.forced is None else rule.forced,
            )
            origins[f"tool_options.{tool}"] = self._origin(name, f"tool_options.{tool}")
        return replace(
            parent,
            name=name,
            limits=limits,
            scopes=parent.scopes if table.scopes is None else tuple(table.scopes),
            users=tuple(table.users or ()),
            images=_texts(table.images, parent.images),
            images_by_digest=_flag(table.images_by_digest, parent.images_by_digest),
            may_pull=_flag(table.may_pull, parent.may_pull),
            runtime_classes=_texts(table.runtime_classes, parent.runtime_classes),
            networks=parent.networks if table.networks is None else tuple(table.networks),
            volumes=self._volumes(table, parent),
            ports=parent.ports if table.ports is None else tuple(self._ports(name, table.ports)),
            extra_hosts=_flag(table.extra_hosts, parent.extra_hosts),
            command=_flag(table.command, parent.command),
            env_names=_texts(table.env_names, parent.env_names),
            tools=_texts(table.tools, parent.tools),
            tool_options=options,
            origins=origins,
        )

    def _volumes(self, table: RoleTable, parent: Role) -> tuple[VolumeRule, ...]:
        if table.volumes is None:
            return parent.volumes
        rooted = self._working_dir.startswith("/") and self._working_dir != "/"
        found: list[VolumeRule] = []
        for volume in table.volumes:
            path = self._working_dir if volume.path == WORKING_DIR else volume.path
            if volume.path != WORKING_DIR or rooted:  # a daemon that nobody embeds knows of no such directory
                path = posixpath.normpath(path) if path.startswith("/") and ".." not in path.split("/") else path
                found.append(VolumeRule(path, volume.mode == "rw", volume.name))
        return tuple(found)

    def _ports(self, name: str, ports: list[int | str]) -> Iterator[PortRange]:
        for port in ports:
            found = _PORTS.fullmatch(str(port))
            first = int(found[1]) if found else 0
            last = int(found[2] or found[1]) if found else 0
            if port == "any" or (found and 1 <= first <= last <= 65535):
                yield PortRange(first, last)
            else:
                self._problem(f"roles.{name}.ports", f'has {port!r}; write 8080, "8000-8999" or "any"')

    def _origin(self, name: str, key: str) -> str:
        line = line_near(self._lines, f"roles.{name}.{key}")
        return f"file {self._path}, line {line}" if line else f"file {self._path}"


def _texts(said: list[str] | None, parent: tuple[str, ...]) -> tuple[str, ...]:
    return parent if said is None else tuple(said)


def _flag(said: bool | None, parent: bool) -> bool:
    return parent if said is None else said


def _reason(place: tuple[int | str, ...], message: str) -> str:
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    if message == "is no rule":
        name = str(place[-1])
        if name == "privileged":
            return "cannot be granted: privileged is in no role"
        known = {1: PolicyTables.model_fields, 3: RoleTable.model_fields}.get(len(place), {})
        return message + _nearest(name, known)
    return message[:1].lower() + message[1:]


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
