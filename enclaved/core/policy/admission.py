"""Decides on requests for sandboxes, and on changes of them."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from enclaved.core.policy.connections import decide_extra_hosts, decide_network, decide_ports, malformed_connections
from enclaved.core.policy.docket import Docket, Ruling
from enclaved.core.policy.images import granted_image, image_name, is_private_registry
from enclaved.core.policy.limits import PolicyLimits
from enclaved.core.policy.mounts import decide_mounts, malformed_volumes, source_of
from enclaved.core.policy.names import VIOLATIONS_MAX
from enclaved.core.policy.programs import (
    ToolOptions,
    Tools,
    decide_command,
    decide_command_options,
    decide_env,
    decide_tools,
    enabled_tools,
    malformed_command,
    matches,
)
from enclaved.core.policy.roles import ANY, RUNC, Role, Rules, built_in_rules
from enclaved.core.policy.users import role_of
from enclaved.core.spec_fields import malformed, shown
from enclaved.core.tmpfs import HEAP_RESERVE_BYTES, TMP_SIZE_BYTES, WORKING_DIR_SIZE_BYTES, tmpfs_sizes
from enclaved.errors import FieldViolation, InvalidRequest, PolicyDenied
from enclaved.model import LOCAL, Adjustment, Identity, Network, SandboxRequest, SandboxSpec, SandboxUpdate, Volume

WORKING_DIR_DEFAULT: Final = "/sandbox"

_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64", "arm64/v8": "arm64", "armv7l": "arm/v7"}


@dataclass(frozen=True, slots=True)
class Admission:
    """What a request was granted."""

    spec: SandboxSpec
    adjustments: tuple[Adjustment, ...]


class Policy:
    """Decides on requests for sandboxes. Looks nothing up and remembers nothing but its rules."""

    def __init__(
        self, limits: PolicyLimits, tools: Tools, machine: str | None = None, *, rules: Rules | None = None
    ) -> None:
        """Takes the limits, the tools there are, and the engine's machine (default: this one, as ``uname -m``).

        ``rules``: other roles than those that are compiled in.
        """
        self.rules = rules or built_in_rules(limits)
        self._tools = tools
        self._machine = _machine(platform.machine() if machine is None else machine)

    @property
    def limits(self) -> PolicyLimits:
        """The daemon's own numbers."""
        return self.rules.limits

    def role(self, identity: Identity) -> Role:
        """The role that somebody has. Raises `PolicyDenied` for one that there is not."""
        return role_of(identity, self.rules)

    def admit(self, request: SandboxRequest, identity: Identity = LOCAL) -> Admission:
        """Turns a request into what the sandbox will really have.

        Raises `InvalidRequest` naming each malformed ``spec.FIELD``, or `PolicyDenied` naming the rule, the field and
        (where there is one) the limit.
        """
        docket = Docket(request, self.role(identity))
        return Admission(self._decide(docket), tuple(docket.adjustments))

    def explain(self, request: SandboxRequest, role: Role) -> tuple[tuple[Ruling, ...], SandboxSpec]:
        """Says of each rule of a role what it makes of a request, refusals included, and what would be granted.

        Raises `InvalidRequest` as `admit`.
        """
        docket = Docket(request, role, goes_on=True)
        spec = self._decide(docket)
        return tuple(docket.rulings), spec

    def covers(self, spec: SandboxSpec, identity: Identity) -> None:
        """Checks that somebody may have a sandbox that was made for another role, or for what this one was before.

        Raises `PolicyDenied`.
        """
        role = self.role(identity)
        own = self.admit(request_for(spec, role), identity).spec
        for rule, field, fits in (
            ("image", "image", own.image_digest in ("", spec.image_digest)),
            ("tool_options", "tools", own.tools == spec.tools),
            # ``None`` is no execute_command at all, which everybody may have.
            ("tool_options", "tools", spec.command_options in (None, own.command_options)),
            ("resources", "timeout_s", spec.timeout_max_s <= own.timeout_max_s),
            ("resources", "ttl_s", spec.ttl_s <= role.limits.ttl_max_s),
            ("resources", "output_limit_bytes", _at_most(spec.output_limit_max_bytes, own.output_limit_max_bytes)),
        ):
            if not fits:
                text = f"{field} of this sandbox is more than the role {role.name} grants; use one of your own"
                raise PolicyDenied(rule, f"spec.{field}", text)

    def _decide(self, docket: Docket) -> SandboxSpec:
        request, limits = docket.request, docket.role.limits
        tools = self._well_formed(request)
        if request.privileged:
            text = "no policy grants privileged sandboxes; leave privileged out"
            docket.refuse("privileged", "privileged", "privileged", "true", text)
        image, digest = self._image(docket)
        network = decide_network(docket)
        mounts = decide_mounts(docket, self.rules.protected)
        ports = decide_ports(docket, network)
        extra_hosts = decide_extra_hosts(docket)
        command = decide_command(docket)
        wanted_platform = self._platform(docket)
        runtime_class = self._runtime_class(docket)
        env_vars = decide_env(docket)
        granted_tools = decide_tools(docket, tools, self._tools, limits.timeout_max_s)
        memory_bytes = docket.number(
            "memory", "memory_limit_bytes", limits.memory_default_bytes, limits.memory_max_bytes
        )
        sizes = tmpfs_sizes(request, memory_bytes, *self._sizes(docket))
        timeout_s = docket.number("timeout", "timeout_s", limits.timeout_default_s, limits.timeout_max_s)
        return SandboxSpec(
            image=image,
            memory_limit_bytes=memory_bytes,
            cpu_limit=float(docket.number("cpu", "cpu_limit", limits.cpu_default, limits.cpu_max)),
            pids_limit=docket.number("pids", "pids_limit", limits.pids_default, limits.pids_max),
            working_dir_size_bytes=sizes.working_dir_bytes,
            tmp_size_bytes=sizes.tmp_bytes,
            shm_size_bytes=sizes.shm_bytes,
            working_dir=WORKING_DIR_DEFAULT if request.working_dir is None else request.working_dir,
            env_vars=env_vars,
            tools=granted_tools,
            timeout_s=float(timeout_s or limits.timeout_max_s),
            timeout_max_s=float(limits.timeout_max_s),
            ttl_s=float(docket.number("ttl", "ttl_s", limits.ttl_default_s, limits.ttl_max_s)),
            remove_on_exit=request.remove_on_exit is not False,
            auto_resume=request.auto_resume is True,
            kill_at_pids_limit=limits.kill_at_pids_limit,
            idle_timeout_s=_idle_timeout(docket, request.idle_timeout_s),
            network=network,
            mounts=mounts,
            ports=ports,
            extra_hosts=extra_hosts,
            command=command,
            platform=wanted_platform,
            runtime_class=runtime_class,
            may_pull=docket.role.may_pull,
            role=docket.role.name,
            image_digest=digest,
            output_limit_bytes=limits.output_default_bytes,
            output_limit_max_bytes=limits.output_max_bytes,
            command_options=decide_command_options(docket.role),
        )

    def change(self, spec: SandboxSpec, update: SandboxUpdate, identity: Identity = LOCAL) -> SandboxSpec:
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
        role = self.role(identity)
        limits = role.limits
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
            problem = _idle_problem(update.idle_timeout_s, limits)
            if problem:
                raise PolicyDenied("resources", "idle_timeout_s", problem, limit=str(limits.idle_timeout_max_s))
            asked["idle_timeout_s"] = float(update.idle_timeout_s)
        changed = replace(spec, **{name: value for name, value in asked.items() if value is not None})
        needed = spec.working_dir_size_bytes + spec.tmp_size_bytes + spec.shm_size_bytes + HEAP_RESERVE_BYTES
        if update.memory_limit_bytes is not None and changed.memory_limit_bytes < min(needed, spec.memory_limit_bytes):
            text = f"its file systems are memory and need {needed} bytes with a reserve for programs; ask for more"
            raise InvalidRequest.of("memory_limit_bytes", text)
        return changed

    def check_image(self, image: str, identity: Identity) -> str:
        """Decides on an image that somebody names: returns its name, with its digest if it is pinned.

        Raises `PolicyDenied`, naming the rule ``image``.
        """
        role = self.role(identity)
        grant = granted_image(image, role.images)
        if grant is None or (role.images_by_digest and not grant.digest):
            raise PolicyDenied("image", "image", _image_text(image, role), _listed(role.images))
        return image if "@" in image or not grant.digest else f"{image}@{grant.digest}"

    def check_pull(self, image: str, identity: Identity) -> None:
        """Decides on a pull. Raises `PolicyDenied`, naming the rule ``pull``."""
        role = self.role(identity)
        if not role.may_pull:
            text = f"image {shown(image)} is not on the engine, and the role {role.name} pulls none"
            raise PolicyDenied("pull", "image", f"{text}; ask the operator for it")

    def _well_formed(self, request: SandboxRequest) -> ToolOptions | None:
        """Checks everything that has a form, and finds the wanted tools. Raises `InvalidRequest`."""
        tools, violations = enabled_tools(request, self._tools)
        violations = [*malformed(request), *self._malformed_grants(request), *violations]
        if violations:
            raise InvalidRequest(*violations[:VIOLATIONS_MAX])
        return tools

    def _malformed_grants(self, request: SandboxRequest) -> Iterator[FieldViolation]:
        yield from malformed_volumes(request, request.working_dir or WORKING_DIR_DEFAULT)
        yield from malformed_connections(request)
        yield from malformed_command(request)
        known = (RUNC, *self.rules.runtime_classes)
        if request.runtime_class is not None and request.runtime_class not in known:
            text = f"no runtime class is called {shown(request.runtime_class)}; available: {', '.join(known)}"
            yield FieldViolation("spec.runtime_class", text)

    @staticmethod
    def _image(docket: Docket) -> tuple[str, str]:
        """Decides on the image: its name, and the digest that it must turn out to have."""
        asked, role = docket.request.image, docket.role
        image = role.limits.image_default if asked is None else asked
        grant = granted_image(image, role.images)
        if grant is None or (role.images_by_digest and not grant.digest):
            docket.refuse("image", "images", "image", image, _image_text(image, role), _listed(role.images))
            return image, ""
        docket.grant("images", "image", asked, image if "@" in image or not grant.digest else f"{image}@{grant.digest}")
        return image, grant.digest

    def _platform(self, docket: Docket) -> str:
        wanted = docket.request.platform
        if not wanted or _machine(wanted) == "linux":
            return ""
        own = f"linux/{self._machine}"
        if _machine(wanted) != self._machine:
            text = f"this engine runs {own}, not {shown(wanted)}; leave platform out"
            docket.refuse("platform", "platform", "platform", wanted, text, own)
            return ""
        docket.grant("platform", "platform", wanted, own)
        return own

    def _runtime_class(self, docket: Docket) -> str:
        wanted, role = docket.request.runtime_class, docket.role
        first = next((name for name in role.runtime_classes if ANY not in name), RUNC)
        found = first if wanted is None else wanted
        limit = ", ".join(role.runtime_classes)
        if found not in (RUNC, *self.rules.runtime_classes):
            text = f"the role {role.name} has sandboxes of the runtime class {found}, which this daemon does not have"
            docket.refuse("runtime_class", "runtime_classes", "runtime_class", found, f"{text}; tell its operator")
        elif not matches(found, role.runtime_classes):
            text = f"this daemon does not grant the runtime class {shown(found)}; leave runtime_class out"
            docket.refuse("runtime_class", "runtime_classes", "runtime_class", found, text, limit)
        else:
            docket.grant("runtime_classes", "runtime_class", wanted, found)
        return "" if found == RUNC else found

    @staticmethod
    def _sizes(docket: Docket) -> tuple[int, int]:
        """Checks the sizes that are asked for, and returns those that hold where none is."""
        limits = docket.role.limits
        defaults = (
            limits.working_dir_size_default_bytes or min(WORKING_DIR_SIZE_BYTES, limits.working_dir_size_max_bytes),
            limits.tmp_size_default_bytes or min(TMP_SIZE_BYTES, limits.tmp_size_max_bytes),
        )
        for key, most in (
            ("working_dir_size", limits.working_dir_size_max_bytes),
            ("tmp_size", limits.tmp_size_max_bytes),
        ):
            wanted = getattr(docket.request, f"{key}_bytes")
            if most and wanted is not None and wanted > most:
                text = f"{key}_bytes is {wanted}, and at most {most} is granted; ask for less"
                docket.refuse("resources", f"{key}_max_bytes", f"{key}_bytes", str(wanted), text, str(most))
        return defaults


def request_for(spec: SandboxSpec, role: Role) -> SandboxRequest:
    """What somebody of a role would have to ask for to get a sandbox like one that exists."""
    return SandboxRequest(
        image=spec.image,
        memory_limit_bytes=spec.memory_limit_bytes,
        cpu_limit=spec.cpu_limit,
        pids_limit=spec.pids_limit,
        working_dir_size_bytes=spec.working_dir_size_bytes,
        tmp_size_bytes=spec.tmp_size_bytes,
        working_dir=spec.working_dir,
        env_vars=spec.env_vars,
        tools=spec.tools,
        timeout_s=spec.timeout_s,
        idle_timeout_s=spec.idle_timeout_s,
        network_enabled=spec.network is not Network.NONE,
        volumes=tuple(
            Volume(source_of(each, role.volumes), each.target, "ro" if each.read_only else "rw") for each in spec.mounts
        ),
        ports=spec.ports,
        extra_hosts=spec.extra_hosts,
        command=spec.command,
        runtime_class=spec.runtime_class or RUNC,
    )


def _at_most(wanted: int, most: int) -> bool:
    """Whether a limit is within another; 0 is no limit."""
    return not most or 0 < wanted <= most


def _idle_timeout(docket: Docket, wanted: float | None) -> float:
    """Decides on an idle timeout; 0 is none."""
    limits = docket.role.limits
    if wanted is None:
        return float(limits.idle_timeout_default_s or limits.idle_timeout_max_s)
    problem = _idle_problem(wanted, limits)
    if problem:
        most = str(limits.idle_timeout_max_s)
        docket.refuse("resources", "idle_timeout_max_s", "idle_timeout_s", f"{wanted:g}", problem, most)
    else:
        docket.grant("idle_timeout_max_s", "idle_timeout_s", wanted, wanted)
    return float(wanted)


def _idle_problem(wanted: float, limits: PolicyLimits) -> str:
    most = limits.idle_timeout_max_s
    if not most or 0 < wanted <= most:
        return ""
    return (
        f"idle_timeout_s is {f'{wanted:g} s' if wanted else 'none'}, and at most {most:g} s are granted; ask for less"
    )


def _image_text(image: str, role: Role) -> str:
    if is_private_registry(image):
        why = f"comes from {shown(image_name(image).registry)}, which no entry of the operator's list names"
    elif role.images_by_digest and granted_image(image, role.images) is not None:
        why = "names no digest, and this daemon takes images by digest only: NAME@sha256:..."
    else:
        why = "is not on the operator's list, or not with this digest"
    return f"the image {shown(image)} {why}; choose another image"


def _listed(images: tuple[str, ...]) -> str:
    return ", ".join(images[:10])


def _machine(name: str) -> str:
    """Reduces the many names of a platform ("linux/amd64", "x86_64") to the engine's."""
    machine = name.lower().removeprefix("linux/")
    return _MACHINES.get(machine, machine)
