"""Compares a container, as the engine describes it, with the create body that it was made of. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from enclaved.runtime.docker.granted import networks_of
from enclaved.runtime.inspection import Deviation

_CONFIG_FIELDS: Final = (
    "Cmd",
    "Entrypoint",
    "Hostname",
    "NetworkDisabled",
    "OpenStdin",
    "StdinOnce",
    "StopSignal",
    "Tty",
    "User",
    "WorkingDir",
)
_OF_PATHS: Final = frozenset({"Cmd", "Dns", "Entrypoint", "ExtraHosts", "OpenStdin", "Mounts", "Tmpfs"})
"""What depends on paths, arguments and name servers that a later daemon does not know."""

# What the body does not set has to be neutral, but for what engines fill in by themselves.
_FILLED_IN: Final[Mapping[str, tuple[object, ...]]] = {
    "ShmSize": (67108864,),
    "Runtime": ("runc", "io.containerd.runc.v2", "crun", "oci"),
    "CgroupnsMode": ("private",),
    "IpcMode": ("none",),
    "Isolation": ("default",),
    "MemorySwappiness": (-1,),
    "ConsoleSize": ([0, 0],),
}
_SHOWN_CHARACTERS: Final = 120


def deviations(body: Mapping[str, Any], seen: Mapping[str, Any], *, is_whole: bool = True) -> Iterator[Deviation]:
    """Names every field that is not as the body says, and every field beside it that is not neutral.

    ``seen`` is the answer of ``GET /containers/ID/json``. ``is_whole=False`` leaves out what depends on paths.
    """
    config, host = _table(seen, "Config"), _table(seen, "HostConfig")
    skipped = frozenset() if is_whole else _OF_PATHS
    if is_whole and seen.get("Image") != body["Image"]:
        yield _deviation("Image", body["Image"], seen.get("Image"))
    for name in _CONFIG_FIELDS:
        if name not in skipped and _comparable(name, body.get(name)) != _comparable(name, config.get(name)):
            yield _deviation(f"Config.{name}", body.get(name), config.get(name))
    test = _table(config, "Healthcheck").get("Test")
    if test != ["NONE"]:
        yield _deviation("Config.Healthcheck", ["NONE"], test)
    if is_whole:
        yield from _environment(body["Env"], config.get("Env"))
        labels = _table(config, "Labels")
        for name, value in body["Labels"].items():
            if labels.get(name) != value:
                yield _deviation(f"Config.Labels.{name}", value, labels.get(name))
    wanted = body["HostConfig"]
    for name in sorted({*wanted, *host}):
        if name in skipped:
            continue
        if wanted.get(name) or (name in wanted and name not in _FILLED_IN):
            if _comparable(name, wanted[name]) != _comparable(name, host.get(name)):
                yield _deviation(f"HostConfig.{name}", wanted[name], host.get(name))
        elif host.get(name) and host[name] not in _FILLED_IN.get(name, ()):
            yield _deviation(f"HostConfig.{name}", None, host[name])
    yield from _attached(wanted, seen)
    yield from _mounted(wanted, seen, skipped)


def _environment(wanted: list[str], found: object) -> Iterator[Deviation]:
    """PID 1 has our variables and no others: a bare name in the body has the engine leave the image's out."""
    values = [item for item in wanted if "=" in item]
    if not isinstance(found, list) or sorted(item for item in found if "=" in str(item)) != sorted(values):
        yield _deviation("Config.Env", values, found)


def _attached(wanted: Mapping[str, Any], seen: Mapping[str, Any]) -> Iterator[Deviation]:
    networks = _table(_table(seen, "NetworkSettings"), "Networks")
    if not set(networks) <= networks_of(wanted["NetworkMode"]):
        yield _deviation("NetworkSettings.Networks", [wanted["NetworkMode"]], sorted(networks))


def _mounted(wanted: Mapping[str, Any], seen: Mapping[str, Any], skipped: frozenset[str]) -> Iterator[Deviation]:
    """The mounts that there are, which is more than what was asked for where an image declares volumes."""
    found = seen.get("Mounts")
    shown = [mount for mount in found if isinstance(mount, dict)] if isinstance(found, list) else []
    foreign = [mount for mount in shown if mount.get("Type") not in ("bind", "tmpfs")]
    if foreign:
        yield _deviation("Mounts", [], foreign)
    if "Mounts" in skipped:
        return
    ours = {(m["Source"], m["Target"], not m.get("ReadOnly", False)) for m in wanted["Mounts"] if m["Type"] == "bind"}
    theirs = {(m.get("Source"), m.get("Destination"), m.get("RW")) for m in shown if m.get("Type") == "bind"}
    if ours != theirs:
        yield _deviation("Mounts", sorted(ours), sorted(theirs, key=str))


def _comparable(name: str, value: Any) -> Any:
    """A value in the form in which it can be compared: engines write the same in several ways."""
    if not value:
        return None  # engines answer null for what is empty
    if name in ("CapAdd", "CapDrop") and isinstance(value, list):
        return sorted(str(item).removeprefix("CAP_") for item in value)
    if name == "Mounts" and isinstance(value, list):
        return sorted(json.dumps({k: v for k, v in mount.items() if v}, sort_keys=True) for mount in value)
    if name == "SecurityOpt" and isinstance(value, list):
        return sorted(str(item).removesuffix(":true") for item in value)
    if name == "Ulimits" and isinstance(value, list):
        return sorted(json.dumps({k.lower(): v for k, v in limit.items()}, sort_keys=True) for limit in value)
    if name in ("MaskedPaths", "ReadonlyPaths") and isinstance(value, list):
        return sorted(value)
    return value


def _table(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def _deviation(field: str, wanted: object, found: object) -> Deviation:
    return Deviation(field, _text(wanted), _text(found))


def _text(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
