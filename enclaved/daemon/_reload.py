"""A new reading of the configuration while the daemon runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from enclaved.config import SETTINGS, ConfigError, Settings
from enclaved.daemon._systemd import Notifier
from enclaved.metrics import Metrics

_log = logging.getLogger(__name__)

POOLS: Final = "pools"
CLASSES: Final = "runtime_classes"


def is_live(key: str) -> bool:
    """Whether a setting takes effect without a restart."""
    others = ("images.default", "policy.file", "sandbox.kill_at_pids_limit", "log.level", "daemon.drain_grace_s")
    return key.startswith("limits.") or key == POOLS or key in others


class Reloads:
    """Reads the configuration again when it is asked to.

    ``reread`` puts the configuration together from its sources as at the start; it raises `ConfigError`.
    """

    def __init__(self, reread: Callable[[], Settings]) -> None:
        self._reread = reread
        self._asked = asyncio.Event()

    def ask(self, why: str) -> None:
        """Asks for a reload; several at once are one."""
        _log.info("reload requested", extra={"by": why})
        self._asked.set()

    async def serve(
        self, settings: Settings, apply: Callable[[Settings], None], notifier: Notifier, metrics: Metrics
    ) -> None:
        """Hands the settings in force to ``apply`` after each reload. Never returns.

        Of a new configuration those settings count that need no restart; the others stay as ``settings`` has them. A
        configuration with a mistake, or a policy file with one (``apply`` raises `ConfigError`), changes nothing.
        """
        while True:
            await self._asked.wait()
            self._asked.clear()
            notifier.reloading()
            try:
                wanted = self._reread()
                changed = _changes(settings, wanted)
                following = _with(settings, wanted, [key for key in changed if is_live(key)])
                apply(following)
            except ConfigError as error:
                metrics.daemon.reloaded(False)
                _log.error("reload failed; the configuration stays as it was", extra={"problems": error.problems})
                notifier.tell(f"READY=1\nSTATUS=The configuration was not reloaded: {error.problems[0]}")
                continue
            settings = following
            waiting = [key for key in changed if not is_live(key)]
            metrics.daemon.reloaded(True)
            _log.info("reloaded", extra={"changed": [key for key in changed if is_live(key)]})
            if waiting:
                _log.warning("these settings need a restart", extra={"settings": waiting})
            status = f"These settings need a restart: {', '.join(waiting)}" if waiting else ""
            notifier.tell(f"READY=1\nSTATUS={status}")


def _changes(settings: Settings, wanted: Settings) -> list[str]:
    """The keys whose values are not the same."""
    changed = [setting.key for setting in SETTINGS if wanted.value(setting.key) != settings.value(setting.key)]
    if (wanted.pools, wanted.bad_pools) != (settings.pools, settings.bad_pools):
        changed.append(POOLS)
    if wanted.runtime_classes != settings.runtime_classes:
        changed.append(CLASSES)
    return changed


def _with(settings: Settings, wanted: Settings, keys: list[str]) -> Settings:
    """The settings with the values of some keys taken from others."""
    tables = settings.model_dump()
    if POOLS in keys:
        tables |= {"pools": wanted.pools, "bad_pools": wanted.bad_pools}
    for key in (key for key in keys if key != POOLS):
        section, _, name = key.partition(".")
        tables[section][name] = wanted.value(key)
    return Settings.model_validate(tables)
