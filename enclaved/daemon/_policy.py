"""The rules of a daemon, put together from what it is."""

from __future__ import annotations

from dataclasses import dataclass

from enclaved.config import Settings
from enclaved.core.policy import Rules, built_in_rules


@dataclass(frozen=True, slots=True)
class PolicySource:
    """Where the rules come from."""

    working_dir: str = ""
    """The directory in which the program works that started the daemon for itself; empty: there is none."""

    def rules(self, settings: Settings) -> Rules:
        """Puts the rules together."""
        protected = [settings.state.dir]
        if settings.engine.url.startswith("unix://"):
            protected.append(settings.engine.url.removeprefix("unix://"))
        return built_in_rules(settings.policy_limits(), working_dir=self.working_dir, protected=tuple(protected))
