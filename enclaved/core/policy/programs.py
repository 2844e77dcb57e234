"""What runs in a sandbox as a role allows it: tools with their options, a command, an environment. Pure."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

from enclaved.core.policy.docket import Docket
from enclaved.core.policy.roles import ANY, Role
from enclaved.core.spec_fields import has_surrogates, shown
from enclaved.errors import FieldViolation, InvalidRequest, ToolNotFound
from enclaved.model import SandboxRequest

SHELL: Final = "shell_executor"
COMMAND_WORDS_MAX: Final = 256
COMMAND_BYTES_MAX: Final = 64 * 1024

ToolOptions = dict[str, dict[str, Any]]


class Tools(Protocol):
    """What policy must know of tools. ``tools.registry.ToolRegistry`` is one."""

    def names(self) -> tuple[str, ...]:
        """Lists the names of the tools that a sandbox may enable."""
        ...

    def canonical(self, name_or_alias: str) -> str:
        """Returns the name of a tool. Raises `ToolNotFound`."""
        ...

    def option_names(self, name: str) -> tuple[str, ...]:
        """Lists the options of a tool. Raises `ToolNotFound`."""
        ...

    def check_options(self, name: str, options: Mapping[str, Any]) -> None:
        """Checks the options of a tool. Raises `InvalidRequest` with fields ``tools.NAME.OPTION``."""
        ...


def enabled_tools(request: SandboxRequest, tools: Tools) -> tuple[ToolOptions | None, list[FieldViolation]]:
    """Finds the wanted tools by their canonical names, with their options, and what is wrong with them."""
    if request.tools is None:
        return None, []
    enabled: ToolOptions = {}
    violations: list[FieldViolation] = []
    known = tools.names()
    for wanted, options in request.tools.items():
        try:
            name = tools.canonical(wanted)
        except ToolNotFound:
            name = ""
        if name not in known:
            text = f"no tool is called {shown(wanted)}; available: {', '.join(known) or 'none'}"
            violations.append(FieldViolation("spec.tools", text))
            continue
        try:
            tools.check_options(name, options)
        except InvalidRequest as error:
            violations += [FieldViolation(f"spec.{each.field}", each.description) for each in error.violations]
        if enabled.setdefault(name, dict(options)) != dict(options):
            violations.append(FieldViolation(f"spec.tools.{name}", "is named twice with different options"))
    return enabled, violations


def decide_tools(docket: Docket, wanted: ToolOptions | None, tools: Tools, timeout_max_s: float) -> ToolOptions | None:
    """Decides on tools and their options; ``None``: all, as they are. Forced options are added to what was wanted."""
    role = docket.role
    if wanted is None:
        granted = {name: dict(_forced(role, name)) for name in tools.names() if matches(name, role.tools)}
        is_all = len(granted) == len(tools.names()) and not any(granted.values())
        docket.grant("tools", "tools", None, "all" if is_all else ", ".join(granted) or "none")
        return None if is_all else granted
    granted = {}
    for name, options in wanted.items():
        if not matches(name, role.tools):
            text = f"this daemon does not grant the tool {name}; leave it out of tools"
            docket.refuse("tools", "tools", "tools", name, text, ", ".join(role.tools))
            continue
        granted[name] = _decide_options(docket, name, options)
        seconds = options.get("timeout")
        if seconds is not None and seconds > timeout_max_s:
            field = f"tools.{name}.timeout"
            text = f"{field} is {seconds:g} s, and at most {timeout_max_s:g} s are granted; 0 asks for that"
            docket.refuse("resources", "timeout_max_s", field, f"{seconds:g}", text, str(timeout_max_s))
    docket.grant("tools", "tools", ", ".join(wanted) or "none", ", ".join(granted) or "none")
    return granted


def _decide_options(docket: Docket, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    rule = docket.role.tool_options.get(name)
    if rule is None:
        return dict(options)
    for option, value in options.items():
        field, key = f"tools.{name}.{option}", f"tool_options.{name}"
        if option in rule.forced:
            if value != rule.forced[option]:
                text = f"the option {option} of {name} is set by the operator and holds for everybody; leave it out"
                docket.refuse("tool_options", key, field, repr(value)[:100], text, repr(rule.forced[option])[:200])
        elif rule.allowed is not None and option not in rule.allowed:
            text = f"the option {option} of {name} is not yours to set; leave it out"
            docket.refuse("tool_options", key, field, repr(value)[:100], text, ", ".join(rule.allowed))
    if rule.forced:
        docket.grant(f"tool_options.{name}", f"tools.{name}", None, repr(dict(rule.forced))[:200])
    return {**options, **rule.forced}


def _forced(role: Role, name: str) -> Mapping[str, Any]:
    rule = role.tool_options.get(name)
    return rule.forced if rule is not None else {}


def decide_command_options(role: Role) -> dict[str, Any] | None:
    """What holds for ``execute_command``, which is there whatever tools a caller enables; ``None``: it is not granted.

    It is no way around the policy: a role without ``shell_executor``, and without a command at start, has neither.
    """
    if not (matches(SHELL, role.tools) or role.command):
        return None
    return {option: value for option, value in _forced(role, SHELL).items() if option != "timeout"}


def malformed_command(request: SandboxRequest) -> Iterator[FieldViolation]:
    """Finds what is wrong with a wanted command, whatever the policy says of it."""
    words = request.command
    if not words:
        return
    if len(words) > COMMAND_WORDS_MAX:
        yield FieldViolation("spec.command", f"has {len(words)} words; at most {COMMAND_WORDS_MAX} are possible")
    elif not words[0] or any("\0" in word or has_surrogates(word) for word in words):
        text = "starts with no program, or holds a NUL or half a surrogate pair, which no program can be given"
        yield FieldViolation("spec.command", text)
    elif (size_bytes := sum(len(word.encode()) for word in words)) > COMMAND_BYTES_MAX:
        text = f"has {size_bytes} bytes, and at most {COMMAND_BYTES_MAX} are possible; put long text into a file"
        yield FieldViolation("spec.command", text)


def decide_command(docket: Docket) -> tuple[str, ...]:
    """Decides on the command that starts with a sandbox."""
    words = docket.request.command
    if not words:
        return ()
    asked = shown(" ".join(words))
    if not docket.role.command:
        text = "this daemon starts no command with a sandbox; run it through shell_executor instead"
        docket.refuse("command", "command", "command", asked, f"{text}; leave command out")
        return ()
    docket.grant("command", "command", asked, asked)
    return words


def decide_env(docket: Docket) -> dict[str, str]:
    """Decides on the names of environment variables. Their values are nobody's business."""
    names = docket.role.env_names
    wanted = docket.request.env_vars
    for name in wanted:
        if not matches(name, names):
            text = f"this daemon does not grant the environment variable {shown(name)}; leave it out of env_vars"
            docket.refuse("env", "env_names", "env_vars", name, text, ", ".join(names))
    if wanted:
        asked = ", ".join(wanted)[:200]
        docket.grant("env_names", "env_vars", asked, asked)
    return dict(wanted)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is one of these, where ``*`` in a pattern stands for anything."""
    return any(pattern in (ANY, name) or _pattern(pattern).fullmatch(name) is not None for pattern in patterns)


@functools.lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(text.replace("[", "[[]")))
