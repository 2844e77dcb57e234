"""Puts the settings together: defaults, then the TOML file, then the environment, then flags."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from enclaved.config.checks import contradictions
from enclaved.config.errors import ConfigError
from enclaved.config.pools import PoolSettings, read_pool
from enclaved.config.reading import read_file
from enclaved.config.runtime_classes import RuntimeClassSettings, read_runtime_class
from enclaved.config.settings import PREFIX, SETTINGS, Setting, Settings

DEFAULT_FILE: Final = Path("/etc/enclaved/config.toml")
FILE_VARIABLE: Final = "ENCLAVED_CONFIG"
FILE_BYTES_MAX: Final = 1024 * 1024
_SECTION = re.compile(r"\s*\[\s*([\w-]+)\s*\]")
_TABLE_OF_MANY = re.compile(r"\s*\[\[\s*(pools|runtime_classes)\s*\]\]")
_POOLS: Final = "pools"
_CLASSES: Final = "runtime_classes"
_WORDS: Final = {
    "Input should be": "must be",
    "String should": "must",
    "Extra inputs are not permitted": "is unknown",
    "Field required": "is missing",
}
"""What the library says, and how it is said here."""
_NAME = re.compile(r"\s*([\w-]+)\s*=")


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings in force, and where each came from."""

    settings: Settings
    origins: Mapping[str, str]
    """Key to "default", "file PATH", "environment NAME" or "flag --NAME"."""
    warnings: tuple[str, ...] = ()


def load(
    file: Path | None = None, *, environ: Mapping[str, str] = os.environ, flags: Mapping[str, str] | None = None
) -> Configuration:
    """Puts the configuration together. Raises `ConfigError` with every problem at once.

    ``file`` must exist; without it ``ENCLAVED_CONFIG`` names the file, which must exist too, else
    /etc/enclaved/config.toml is read if there is one. ``flags`` maps keys to the texts of the command line.
    """
    gathered = _Gathered()
    path = file or (Path(environ[FILE_VARIABLE]) if environ.get(FILE_VARIABLE) else None)
    gathered.take_file(path or DEFAULT_FILE, required=path is not None)
    gathered.take_environment(environ)
    for setting in SETTINGS:
        if flags and setting.key in flags:
            gathered.take_text(setting, flags[setting.key], f"flag {setting.flag}")
    return gathered.configuration()


class _Gathered:
    """Values on their way into the settings: later sources replace earlier ones."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._lines: dict[str, int] = {}
        """Where in the file a key stands."""
        self._problems: list[str] = []
        self._warnings: list[str] = []
        self._pools: dict[str, PoolSettings] = {}
        self._bad_pools: list[str] = []
        self._classes: dict[str, RuntimeClassSettings] = {}

    def take_file(self, path: Path, *, required: bool) -> None:
        """Reads a TOML file."""
        try:
            data = read_file(path, FILE_BYTES_MAX)
            if len(data) > FILE_BYTES_MAX:
                self._problems.append(f"file {path}: has more than {FILE_BYTES_MAX} bytes")
                return
            text = data.decode()
            tables = tomllib.loads(text)
        except FileNotFoundError:
            if required:
                self._problems.append(f"file {path}: there is no such file")
            return
        except OSError as error:
            self._problems.append(f"file {path}: cannot be read: {error.strerror}")
            return
        except (ValueError, RecursionError) as error:  # bytes that are no text, numbers too long, tables too deep
            self._problems.append(f"file {path}: is not TOML: {error}")
            return
        self._lines = _lines(text)
        for section, table in tables.items():
            if section == _POOLS:
                self._take_pools(table, f"file {path}")
                continue
            if section == _CLASSES:
                self._take_classes(table, f"file {path}")
                continue
            if not isinstance(table, dict):
                if section in Settings.model_fields:
                    where = self._in_line(f"file {path}", section)
                    self._problems.append(f"{where}: {section} must be a table; write [{section}]")
                else:
                    self._unknown(f"file {path}", section)
                continue
            for name, value in table.items():
                self._take(f"{section}.{name}", value, f"file {path}")
            if not table and section not in Settings.model_fields:
                self._unknown(f"file {path}", section)

    def _take_pools(self, tables: object, origin: str) -> None:
        """Reads definitions of pools. One with a mistake is left out, since the others can serve."""
        for index, table in enumerate(tables if isinstance(tables, list) else [tables]):
            pool, problems = read_pool(table, self._pools)
            if pool is not None:
                self._pools[pool.id] = pool
            name = table.get("id") if isinstance(table, dict) else None
            for key, text in problems:
                where = self._in_line(self._in_line(origin, f"{_POOLS}[{index}].{key}"), f"{_POOLS}[{index}]")
                self._bad_pools.append(f"{where}: {_POOLS}[{index}] ({name or 'no id'}): {key} {_reason(text)}")

    def _take_classes(self, tables: object, origin: str) -> None:
        """Reads definitions of runtime classes. One with a mistake ends it all: nobody is to get another isolation."""
        for index, table in enumerate(tables if isinstance(tables, list) else [tables]):
            found, problems = read_runtime_class(table, self._classes)
            if found is not None:
                self._classes[found.name] = found
            name = f"{_CLASSES}[{index}]"
            for key, text in problems:
                where = self._in_line(self._in_line(origin, f"{name}.{key}"), name)
                self._problems.append(f"{where}: {name}: {key} {_reason(text)}")

    def take_environment(self, environ: Mapping[str, str]) -> None:
        """Reads the environment. An unknown variable is worth a warning only: others may share our prefix."""
        if environ.get("DOCKER_HOST") and "engine.url" not in self._values:
            self._take("engine.url", environ["DOCKER_HOST"], "environment DOCKER_HOST")
        variables = {setting.variable: setting for setting in SETTINGS}
        for name, text in environ.items():
            if name in variables:
                self.take_text(variables[name], text, f"environment {name}")
            elif name.startswith(PREFIX) and name != FILE_VARIABLE:
                hint = _nearest(name.removeprefix(PREFIX), [known.removeprefix(PREFIX) for known in variables], PREFIX)
                self._warnings.append(f"environment {name} is no setting and is ignored{hint}")

    def take_text(self, setting: Setting, text: str, origin: str) -> None:
        """Takes a value in the form of text."""
        try:
            self._take(setting.key, _parse(setting.field, text), origin)
        except ValidationError as error:
            self._problems.append(f"{origin}: {setting.key} {_reason(error.errors()[0]['msg'])}")
        except ValueError as error:
            self._problems.append(f"{origin}: {setting.key} {error}")

    def configuration(self) -> Configuration:
        """Checks everything together."""
        tables: dict[str, dict[str, Any]] = {}
        for key, value in self._values.items():
            section, _, name = key.partition(".")
            tables.setdefault(section, {})[name] = value
        try:
            settings = Settings.model_validate(tables)
        except ValidationError as error:
            for detail in error.errors():
                key = ".".join(str(part) for part in detail["loc"][:2])
                self._problems.append(f"{self._place(key)}: {key} {_reason(detail['msg'])}")
            raise ConfigError(self._problems) from None
        for key, why in contradictions(settings):
            self._problems.append(f"{self._place(key)}: {key} {why}")
        if self._problems:
            raise ConfigError(self._problems)
        settings = settings.model_copy(
            update={
                "pools": tuple(self._pools.values()),
                "bad_pools": tuple(self._bad_pools),
                "runtime_classes": tuple(self._classes.values()),
            }
        )
        origins = {setting.key: self._origins.get(setting.key, "default") for setting in SETTINGS}
        return Configuration(settings, origins, tuple(self._warnings))

    def _place(self, key: str) -> str:
        return self._in_line(self._origins.get(key, "default"), key)

    def _in_line(self, origin: str, key: str) -> str:
        """Says where a value came from; in a file, in which line it stands."""
        in_file = origin.startswith("file ") and ", line " not in origin
        return f"{origin}, line {self._lines[key]}" if in_file and key in self._lines else origin

    def _take(self, key: str, value: Any, origin: str) -> None:
        if not any(setting.key == key for setting in SETTINGS):
            self._unknown(origin, key)
            return
        self._values[key], self._origins[key] = value, origin

    def _unknown(self, origin: str, key: str) -> None:
        section, dot, name = key.partition(".")
        keys = [setting.key for setting in SETTINGS]
        if section in Settings.model_fields and dot:
            start = f"{section}."
            hint = _nearest(name, [known.removeprefix(start) for known in keys if known.startswith(start)], start)
        else:
            hint = _nearest(key, keys if dot else Settings.model_fields)
        self._problems.append(f"{self._in_line(origin, key)}: {key} is no setting{hint}")


def _lines(text: str) -> dict[str, int]:
    """Finds the line of every section and of every ``section.name``, for a message about it."""
    found: dict[str, int] = {}
    section, counts = "", {_POOLS: 0, _CLASSES: 0}
    for number, line in enumerate(text.splitlines(), 1):
        if match := _TABLE_OF_MANY.match(line):
            section = f"{match[1]}[{counts[match[1]]}]"
            counts[match[1]] += 1
            found[section] = number
        elif match := _SECTION.match(line):
            section = match[1]
            found.setdefault(section, number)
        elif match := _NAME.match(line):
            found.setdefault(f"{section}.{match[1]}" if section else match[1], number)
    return found


def _parse(field: FieldInfo, text: str) -> Any:
    annotation: Any = field.annotation
    if annotation == list[str]:
        return [part.strip() for part in text.split(",") if part.strip()]
    if annotation != dict[str, str]:
        return TypeAdapter(annotation).validate_strings(text)
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if not all(name.strip() and equals and value.strip() for name, equals, value in pairs):
        raise ValueError("must look like name=value,name=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _reason(message: str) -> str:
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message
