"""The operator's rules: what a caller may ask for, and what it then gets. Pure.

Nothing is silently weakened. What a caller set and may not have is refused, naming the rule; only a value that it left
at its documented default is lowered, and the sandbox says so (`Adjustment`).
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from enclaved.core.spec_fields import (
    CPU_MIN,
    MEMORY_MIN_BYTES,
    MIB,
    PIDS_MIN,
    TTL_MIN_S,
    has_surrogates,
    is_seconds,
    malformed,
    shown,
)
from enclaved.core.tmpfs import HEAP_RESERVE_BYTES, tmpfs_sizes
from enclaved.errors import FieldViolation, InvalidRequest, PolicyDenied, ToolNotFound
from enclaved.model import LOCAL, Adjustment, Identity, SandboxRequest, SandboxSpec, SandboxUpdate

WORKING_DIR_DEFAULT = "/sandbox"

LABELS_MAX = 64
LABEL_VALUE_MAX = 256

# Violations travel in the call's trailing metadata, which clients limit to 8 KiB.
_VIOLATIONS_MAX = 10

_SANDBOX_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_EXECUTION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_CONTEXT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LABEL_KEY = re.compile(r"[A-Za-z0-9._/-]{1,63}")
_MACHINES: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64", "arm64/v8": "arm64", "armv7l": "arm/v7"}

NumberT = TypeVar("NumberT", int, float)


class Tools(Protocol):
    """What policy must know of tools. ``tools.registry.ToolRegistry`` is one."""

    def names(self) -> tuple[str, ...]:
        """Lists the names of the tools that a sandbox may enable."""
        ...

    def canonical(self, name_or_alias: str) -> str:
        """Returns the name of a tool. Raises `ToolNotFound`."""
        ...

    def check_options(self, name: str, options: Mapping[str, Any]) -> None:
        """Checks the options of a tool. Raises `InvalidRequest` with fields ``tools.NAME.OPTION``."""
        ...


@dataclass(frozen=True, slots=True)
class PolicyLimits:
    """The numbers of the policy. Every default lies between the least that works and its maximum."""

    memory_default_bytes: int = 512 * MIB
    memory_max_bytes: int = 4096 * MIB
    cpu_default: float = 1.0
    cpu_max: float = 2.0
    pids_default: int = 256
    pids_max: int = 1024
    timeout_default_s: float = 30.0
    timeout_max_s: float = 3600.0
    ttl_default_s: float = 86400.0
    ttl_max_s: float = 604800.0
    idle_timeout_default_s: float = 0.0
    """Idle timeout of a sandbox whose caller asks for none; 0: none, or the longest that there is."""
    idle_timeout_max_s: float = 0.0
    """Longest idle timeout; 0: any, and none at all."""
    sandboxes_max: int = 200
    executions_per_sandbox_max: int = 100
    image_default: str = "python:3.11-slim"
    kill_at_pids_limit: bool = False
    """Whether an execution that meets the limit of processes is killed; otherwise its fork fails and it goes on."""

    def __post_init__(self) -> None:
        """Raises `ValueError` naming the limit that contradicts another, for whoever wrote the configuration."""
        for default, maximum, least in (
            ("memory_default_bytes", "memory_max_bytes", MEMORY_MIN_BYTES),
            ("cpu_default", "cpu_max", CPU_MIN),
            ("pids_default", "pids_max", PIDS_MIN),
            ("timeout_default_s", "timeout_max_s", 0.001),
            ("ttl_default_s", "ttl_max_s", TTL_MIN_S),
        ):
            if not least <= getattr(self, default) <= getattr(self, maximum) < float("inf"):
                raise ValueError(f"{default} must be at least {least} and at most {maximum}, which must be finite")
        if not 0 <= self.idle_timeout_default_s < float("inf") or not 0 <= self.idle_timeout_max_s < float("inf"):
            raise ValueError("idle_timeout_default_s and idle_timeout_max_s must be 0 or more, and finite")
        if 0 < self.idle_timeout_max_s < self.idle_timeout_default_s:
            raise ValueError("idle_timeout_default_s must be at most idle_timeout_max_s")
        for count in ("sandboxes_max", "executions_per_sandbox_max"):
            if getattr(self, count) < 1:
                raise ValueError(f"{count} must be at least 1")
        if not self.image_default:
            raise ValueError("image_default must name an image")


@dataclass(frozen=True, slots=True)
class Admission:
    """What a request was granted."""

    spec: SandboxSpec
    adjustments: tuple[Adjustment, ...]


class Policy:
    """Decides on requests for sandboxes. Looks nothing up and remembers nothing."""

    def __init__(self, limits: PolicyLimits, tools: Tools, machine: str | None = None) -> None:
        """Takes the limits, the tools there are, and the engine's machine (default: this one, as ``uname -m``)."""
        self.limits = limits
        self._tools = tools
        self._machine = _machine(platform.machine() if machine is None else machine)

    def admit(self, request: SandboxRequest, identity: Identity = LOCAL) -> Admission:
        """Turns a request into what the sandbox will really have.

        Raises `InvalidRequest` naming each malformed ``spec.FIELD``, or `PolicyDenied` naming the rule, the field and
        (where there is one) the limit.
        """
        tools, violations = self._enabled_tools(request)
        violations = [*malformed(request), *violations]
        if violations:
            raise InvalidRequest(*violations[:_VIOLATIONS_MAX])
        denial = next(self._denials(request), None)
        if denial is not None:
            raise denial
        for name, options in (tools or {}).items():
            _check_timeout(options.get("timeout"), self.limits.timeout_max_s, f"spec.tools.{name}.timeout")

        limits = self.limits
        adjustments = list(_network_adjustments(request))
        resources = _Resources(request, adjustments)
        memory_bytes = resources.grant("memory_limit_bytes", limits.memory_default_bytes, limits.memory_max_bytes)
        sizes = tmpfs_sizes(request, memory_bytes)
        timeout_s = resources.grant("timeout_s", limits.timeout_default_s, limits.timeout_max_s)
        spec = SandboxSpec(
            image=limits.image_default if request.image is None else request.image,
            memory_limit_bytes=memory_bytes,
            cpu_limit=float(resources.grant("cpu_limit", limits.cpu_default, limits.cpu_max)),
            pids_limit=resources.grant("pids_limit", limits.pids_default, limits.pids_max),
            working_dir_size_bytes=sizes.working_dir_bytes,
            tmp_size_bytes=sizes.tmp_bytes,
            shm_size_bytes=sizes.shm_bytes,
            working_dir=WORKING_DIR_DEFAULT if request.working_dir is None else request.working_dir,
            env_vars=dict(request.env_vars),
            tools=tools,
            timeout_s=float(timeout_s or limits.timeout_max_s),
            timeout_max_s=float(limits.timeout_max_s),
            ttl_s=float(resources.grant("ttl_s", limits.ttl_default_s, limits.ttl_max_s)),
            remove_on_exit=request.remove_on_exit is not False,
            auto_resume=request.auto_resume is True,
            kill_at_pids_limit=limits.kill_at_pids_limit,
            idle_timeout_s=self._idle_timeout(request.idle_timeout_s, "spec.idle_timeout_s"),
            role=identity.role,
        )
        return Admission(spec, tuple(adjustments))

    def change(self, spec: SandboxSpec, update: SandboxUpdate) -> SandboxSpec:
        """Decides on changes of a sandbox that exists; its time to live is only checked, since it counts from now.

        Raises `InvalidRequest` naming each malformed field, or `PolicyDenied`.
        """
        asked: dict[str, Any] = {
            name: getattr(update, name) for name in ("memory_limit_bytes", "cpu_limit", "pids_limit")
        }
        request = SandboxRequest(**asked, ttl_s=update.ttl_s, idle_timeout_s=update.idle_timeout_s)
        violations = [replace(each, field=each.field.removeprefix("spec.")) for each in malformed(request)]
        if violations:
            raise InvalidRequest(*violations)
        limits = self.limits
        for name, most in (
            ("memory_limit_bytes", limits.memory_max_bytes),
            ("cpu_limit", limits.cpu_max),
            ("pids_limit", limits.pids_max),
            ("ttl_s", limits.ttl_max_s),
        ):
            wanted = getattr(update, name)
            if wanted is not None and wanted > most:
                text = f"{name} is {wanted}, and at most {most} is granted; ask for less"
                raise PolicyDenied("resources", name, text, limit=str(most))
        if update.idle_timeout_s is not None:
            asked["idle_timeout_s"] = self._idle_timeout(update.idle_timeout_s, "idle_timeout_s")
        changed = replace(spec, **{name: value for name, value in asked.items() if value is not None})
        needed = spec.working_dir_size_bytes + spec.tmp_size_bytes + spec.shm_size_bytes + HEAP_RESERVE_BYTES
        if update.memory_limit_bytes is not None and changed.memory_limit_bytes < min(needed, spec.memory_limit_bytes):
            text = f"its file systems are memory and need {needed} bytes with a reserve for programs; ask for more"
            raise InvalidRequest.of("memory_limit_bytes", text)
        return changed

    def _idle_timeout(self, wanted: float | None, field: str) -> float:
        """Decides on an idle timeout; 0 is none. Raises `PolicyDenied`."""
        most = self.limits.idle_timeout_max_s
        if wanted is None:
            return float(self.limits.idle_timeout_default_s or most)
        if most and not 0 < wanted <= most:
            asked = f"{wanted:g} s" if wanted else "none"
            text = f"idle_timeout_s is {asked}, and at most {most:g} s are granted; ask for less"
            raise PolicyDenied("resources", field, text, limit=str(most))
        return float(wanted)

    def _enabled_tools(self, request: SandboxRequest) -> tuple[dict[str, dict[str, Any]] | None, list[FieldViolation]]:
        """Finds the wanted tools by their canonical names, with their options."""
        if request.tools is None:
            return None, []
        enabled: dict[str, dict[str, Any]] = {}
        violations: list[FieldViolation] = []
        known = self._tools.names()
        for wanted, options in request.tools.items():
            try:
                name = self._tools.canonical(wanted)
            except ToolNotFound:
                name = ""
            if name not in known:
                text = f"no tool is called {shown(wanted)}; available: {', '.join(known) or 'none'}"
                violations.append(FieldViolation("spec.tools", text))
                continue
            try:
                self._tools.check_options(name, options)
            except InvalidRequest as error:
                violations += [replace(each, field=f"spec.{each.field}") for each in error.violations]
            if enabled.setdefault(name, dict(options)) != dict(options):
                violations.append(FieldViolation(f"spec.tools.{name}", "is named twice with different options"))
        return enabled, violations

    def _denials(self, request: SandboxRequest) -> Iterator[PolicyDenied]:
        """Yields what this policy does not grant under any value."""
        lowered = request.documented_defaults
        if request.privileged:
            yield _denied("privileged", "privileged", "no policy grants privileged sandboxes")
        network = request.network or "none"
        if (network == "host" or network.startswith("container:")) and "network" not in lowered:
            text = f"no policy grants the network {shown(network)}: it is the host's own, or another container's"
            yield _denied("network", "network", text)
        if request.network_enabled and "network_enabled" not in lowered:
            yield _denied("network", "network_enabled", "this daemon grants no network")
        # Naming a network while asking for none is asking for none.
        if network != "none" and request.network_enabled is not False and "network" not in lowered:
            yield _denied("network", "network", f"this daemon grants no network such as {shown(network)}")
        if request.volumes:
            text = f"this daemon mounts no host directories such as {shown(request.volumes[0].host_path)}"
            yield _denied("volumes", "volumes", f"{text}; write files into the sandbox instead")
        if request.ports:
            yield _denied("ports", "ports", "this daemon publishes no ports")
        if request.extra_hosts:
            yield _denied("extra_hosts", "extra_hosts", "this daemon grants no lines of /etc/hosts")
        if request.command:
            text = "this daemon starts no command with a sandbox; run it through shell_executor instead"
            yield _denied("command", "command", text)
        if request.platform and _machine(request.platform) not in (self._machine, "linux"):
            text = f"this engine runs linux/{self._machine}, not {shown(request.platform)}"
            yield _denied("platform", "platform", text, limit=f"linux/{self._machine}")


class _Resources:
    """Grants the numbers of one request, and notes the documented defaults that it lowers."""

    def __init__(self, request: SandboxRequest, adjustments: list[Adjustment]) -> None:
        self._request = request
        self._adjustments = adjustments

    def grant(self, field: str, default: NumberT, maximum: NumberT) -> NumberT:
        """Returns the wanted number, the default if none is wanted, or the maximum instead of a documented default.

        Raises `PolicyDenied` where more than the maximum is asked for.
        """
        wanted: NumberT | None = getattr(self._request, field)
        if wanted is None:
            return default
        if wanted <= maximum:
            return wanted
        if field in self._request.documented_defaults:
            self._adjustments.append(Adjustment(field, str(wanted), str(maximum), "resources"))
            return maximum
        text = f"{field} is {wanted}, and at most {maximum} is granted; ask for less"
        raise PolicyDenied("resources", f"spec.{field}", text, limit=str(maximum))


def execution_timeout(requested_s: float | None, tool_s: float | None, spec: SandboxSpec) -> float:
    """Decides how long an execution may run: the call's timeout, else the tool's, else the sandbox's, in seconds.

    ``requested_s`` is the call's own, ``tool_s`` that of its parameters or of the tool's options; 0 asks for the
    longest there is. Raises `InvalidRequest` for what is no number of seconds, `PolicyDenied` for more than the
    sandbox's maximum.
    """
    field, wanted = ("timeout_s", requested_s) if requested_s is not None else ("parameters.timeout", tool_s)
    if wanted is None:
        return spec.timeout_s
    if not is_seconds(wanted):
        text = "must be a number of seconds from 0 to 1e9; 0 asks for the longest that policy allows"
        raise InvalidRequest.of(field, text)
    _check_timeout(wanted, spec.timeout_max_s, field)
    return wanted or spec.timeout_max_s


def check_id(sandbox_id: str, field: str = "sandbox_id") -> None:
    """Refuses what is no id of a sandbox, before anything is made of it. Raises `InvalidRequest`."""
    if not _SANDBOX_ID.fullmatch(sandbox_id):
        raise InvalidRequest.of(field, f"{shown(sandbox_id)} is no id: it must match ^{_SANDBOX_ID.pattern}$")


def check_execution_id(execution_id: str, field: str = "execution_id") -> None:
    """Refuses what is no id of an execution, before anything is made of it. Raises `InvalidRequest`."""
    if not _EXECUTION_ID.fullmatch(execution_id):
        raise InvalidRequest.of(field, f"{shown(execution_id)} is no id: it must match ^{_EXECUTION_ID.pattern}$")


def check_request_id(request_id: str, field: str = "request_id") -> None:
    """Refuses what is no id of a request. Raises `InvalidRequest`."""
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidRequest.of(field, f"{shown(request_id)} is no id: it must match ^{_REQUEST_ID.pattern}$")


def check_context_name(name: str, field: str = "name") -> None:
    """Refuses what is no name of a context, before anything is made of it. Raises `InvalidRequest`."""
    if not _CONTEXT_NAME.fullmatch(name):
        raise InvalidRequest.of(field, f"{shown(name)} is no name: it must match ^{_CONTEXT_NAME.pattern}$")


def check_labels(labels: Mapping[str, str], field: str = "labels") -> None:
    """Refuses labels that are too many, too long, or in a namespace of the daemon. Raises `InvalidRequest`."""
    violations = [FieldViolation(field, text) for text in _label_problems(labels)]
    if violations:
        raise InvalidRequest(*violations[:_VIOLATIONS_MAX])


def _label_problems(labels: Mapping[str, str]) -> Iterator[str]:
    if len(labels) > LABELS_MAX:
        yield f"has {len(labels)} entries; at most {LABELS_MAX} are possible"
        return
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            yield f"{shown(key)} is no key: it must match ^{_LABEL_KEY.pattern}$"
        elif key.lower().startswith("enclaved."):
            yield f"{shown(key)}: keys that start with 'enclaved.' belong to the daemon; choose another prefix"
        elif len(value) > LABEL_VALUE_MAX or "\0" in value or has_surrogates(value):
            yield f"the value of {shown(key)} is longer than {LABEL_VALUE_MAX} characters, or not text"


def _network_adjustments(request: SandboxRequest) -> Iterator[Adjustment]:
    # What is wanted at this point was a documented default; the rest has been refused.
    if request.network_enabled:
        yield Adjustment("network_enabled", "true", "false", "network")
    if request.network and request.network != "none" and request.network_enabled is not False:
        yield Adjustment("network", request.network, "none", "network")


def _check_timeout(seconds: float | None, maximum_s: float, field: str) -> None:
    if seconds is not None and seconds > maximum_s:
        text = f"{field} is {seconds:g} s, and at most {maximum_s:g} s are granted; 0 asks for that"
        raise PolicyDenied("resources", field, text, limit=str(maximum_s))


def _denied(rule: str, field: str, text: str, limit: str = "") -> PolicyDenied:
    return PolicyDenied(rule, f"spec.{field}", f"{text}; leave {field} out", limit)


def _machine(name: str) -> str:
    """Reduces the many names of a platform ("linux/amd64", "x86_64") to the engine's."""
    machine = name.lower().removeprefix("linux/")
    return _MACHINES.get(machine, machine)
