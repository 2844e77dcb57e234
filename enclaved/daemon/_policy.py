"""The rules of a daemon, put together from its configuration and its policy file."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from enclaved.config import DEFAULT_POLICY_FILE, Settings, read_policy
from enclaved.core.policy import Policy, Rules, Tools, built_in_rules
from enclaved.daemon._errors import StartError
from enclaved.tools.registry import ToolRegistry, ToolSetupError


@dataclass(frozen=True, slots=True)
class PolicySource:
    """Where the rules come from."""

    tools: Tools
    working_dir: str = ""
    """The directory in which the program works that started the daemon for itself; empty: there is none."""

    def rules(self, settings: Settings, file: Path | None = None) -> Rules:
        """Puts the rules together; ``file``: with another policy file than the one of the settings.

        Raises `ConfigError` for a file with a mistake, and for one that cannot be read.
        """
        built_in = built_in_rules(
            settings.policy_limits(), working_dir=self.working_dir, protected=_protected(settings)
        )
        built_in = replace(built_in, runtime_classes=tuple(each.name for each in settings.runtime_classes))
        path = file or (Path(settings.policy.file) if settings.policy.file else None)
        if path is None:
            if not DEFAULT_POLICY_FILE.exists():
                return built_in
            path = DEFAULT_POLICY_FILE
        return read_policy(path, built_in, tools=self.tools, working_dir=self.working_dir)


def policy_of(settings: Settings, file: Path | None = None, *, working_dir: str = "") -> Policy:
    """Puts together what a daemon with these settings and the installed tools would decide by.

    Raises `ConfigError`, and `StartError` where tools are installed that cannot be used.
    """
    try:
        tools = ToolRegistry.from_entry_points()
    except ToolSetupError as error:
        raise StartError(str(error)) from error
    rules = PolicySource(tools, working_dir).rules(settings, file)
    return Policy(rules.limits, tools, rules=rules)


def _protected(settings: Settings) -> tuple[str, ...]:
    """Host paths of the daemon's own that nobody may mount, by all the names that they have now.

    Who could write to the file of roles, or to the interpreter that other sandboxes run, would be the operator.
    """
    own = [settings.policy.file, settings.sandbox.guest_runtime, settings.tls.cert, settings.tls.key]
    paths = [settings.state.dir, *(str(Path(each).absolute()) for each in own if each)]
    paths += [each for each in (settings.listen.unix, settings.listen.http.removeprefix("unix:")) if each[:1] == "/"]
    if settings.engine.url.startswith("unix://"):
        paths.append(settings.engine.url.removeprefix("unix://"))
    return tuple(dict.fromkeys([*paths, *(os.path.realpath(path) for path in paths)]))
