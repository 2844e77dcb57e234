"""What is known of the protections here, and the gate that lets no sandbox be used before they were seen to work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from enclaved.core.background import Background
from enclaved.core.judging import all_failed_by
from enclaved.errors import EnclaveError, EngineRefused, EngineUnavailable, ImageNotFound, ImageUnusable, NoSpace
from enclaved.metrics import Metrics
from enclaved.model import Protection, ProtectionState
from enclaved.model.protections import PROTECTION_NAMES

log = logging.getLogger(__name__)

LOOK_MOST_S: Final = 120.0
"""How long one look may take."""
AGAIN_AFTER_S: Final = 60.0
"""After so long what failed, or could not be looked at, is looked at again."""
ATTEMPTS: Final = 2
"""A canary that cannot be made may be due to load."""
LOOKS_MOST: Final = 3
"""Looks in a row at an engine that may have been replaced while it was looked at."""
GUEST: Final = "guest"


class Looking(Protocol):
    """Whoever looks; see `Canary`."""

    async def look(self, image: str) -> tuple[Protection, ...]:
        """Says of each protection whether it works."""
        ...

    async def close(self, deadline_s: float) -> None:
        """Waits until nothing of it is left, within a deadline."""
        ...


class Protections:
    """Looks at the protections when the engine comes, and holds back new sandboxes until they were seen to work.

    Without a canary (``None``) there is nothing to look at, and nothing is held back. ``image`` is what canaries are
    made of when the engine comes; empty: the first sandbox's image, and not before that. ``changed`` hears whether
    sandboxes can be made, after every look and when the engine comes or goes.
    """

    def __init__(
        self,
        *,
        background: Background,
        metrics: Metrics,
        canary: Looking | None = None,
        image: str = "",
    ) -> None:
        self._background, self._metrics, self._image, self._canary = background, metrics, image, canary
        self._states = tuple(Protection(name, ProtectionState.UNKNOWN) for name in PROTECTION_NAMES)
        self._passed: bool | None = None
        self._looked_at = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None
        self._is_there = False
        """Whether the engine is."""
        self._has_passed = False
        self._doubts = 0
        self._unmade = ""
        """Why no canary could be made."""
        self._settled = asyncio.Event()
        self.refused = asyncio.Event()
        """Set where a look failed before any passed: such a daemon does not serve."""
        self.changed: Callable[[bool], Awaitable[None]] = _nobody_listens
        if canary is not None:
            metrics.daemon.protections(self._states)

    @property
    def states(self) -> tuple[Protection, ...]:
        """Every protection with what is known of it; empty where there is nothing to look at."""
        return self._states if self._canary is not None else ()

    @property
    def trouble(self) -> str:
        """What failed, in a sentence for whoever runs the daemon; empty if nothing did."""
        failed = [one for one in self._states if one.state is ProtectionState.FAILED]
        if not failed:
            return ""
        if self._unmade:
            return f"no sandbox can be made here, so that nothing shows how isolated one is: {self._unmade}"
        listed = "; ".join(f"{one.name}: {one.detail}" for one in failed)
        names = ", ".join(f'"{one.name}"' for one in failed)
        return (
            f"sandboxes would not be isolated here: {listed}. "
            f"Mend that, or do without it knowingly with protections = [{names}] in [waive] of the configuration file"
        )

    async def engine_seen(self, available: bool) -> None:
        """The engine came or went. What was seen of it before counts no more."""
        self._is_there = available
        if available:
            self._begin_anew()  # what goes on looks at it already
        else:
            self.doubt()
        if available and self._canary is not None and self._image:
            self._begin(self._image)
            return
        self._settled.set()
        await self.changed(available)

    def doubt(self) -> None:
        """The engine may be another one now: nothing is handed out before the next look has passed.

        A look that goes on may have seen the one before, so it is made again.
        """
        self._doubts += 1
        self._begin_anew()

    def _begin_anew(self) -> None:
        if self._canary is not None and self._looking is None:
            self._passed = None

    async def settled(self) -> None:
        """Waits until the first look is over, or the engine was found away."""
        await self._settled.wait()

    def expect(self, image: str) -> None:
        """A sandbox of this image is being made: looks beside that, if it is not known what a look would find."""
        if self._canary is not None and self._passed is None:
            self._begin(image)

    async def wait_passed(self, image: str) -> None:
        """Waits until protections were seen to work; looks with this image if nobody looks.

        Raises `EngineRefused` if they do not, `EngineUnavailable`, and what keeps a canary from being made.
        """
        while self._canary is not None and self._passed is not True:
            if self._passed is False and self._age_s() < AGAIN_AFTER_S:
                raise EngineRefused("isolate a sandbox", self.trouble)
            began = self._looking is None
            looking = self._begin(image)
            try:
                await asyncio.shield(looking)
            except EnclaveError:
                if began:
                    raise

    async def close(self, deadline_s: float) -> None:
        """Looks no more, and waits until no canary is left, within a deadline."""
        self._is_there = False
        if self._later is not None:
            self._later.cancel()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking], timeout=deadline_s)
        if self._canary is not None:
            await self._canary.close(deadline_s)

    def _begin(self, image: str) -> asyncio.Task[None]:
        if self._looking is None:
            self._looking = self._background.begin(self._look(image), "look at protections")
            self._looking.add_done_callback(_log_fault)
        return self._looking

    def _look_again(self) -> None:
        self._later = None
        if self._is_there and self._passed is not True:
            self._begin(self._image)

    def _age_s(self) -> float:
        return asyncio.get_running_loop().time() - self._looked_at

    async def _look(self, image: str) -> None:
        """Looks once. What keeps it from a verdict is logged and raised."""
        try:
            if self._canary is not None:
                self._conclude(await self._found_of_one(self._canary, image))
        except ImageNotFound as error:
            log.info("no canary of this image; the next sandbox's is taken", extra={"reason": str(error)})
            self._unseen(error)
            raise
        except EnclaveError as error:
            log.warning("protections not looked at; nothing is handed out", extra={"reason": str(error)})
            self._unseen(error)
            raise
        finally:
            self._looking = None
            self._settled.set()
            if self._passed is not True and self._is_there and self._image and self._later is None:
                # Whoever balances load sends nothing here, so that no request would ever begin the next look.
                self._later = asyncio.get_running_loop().call_later(AGAIN_AFTER_S, self._look_again)
            await self.changed(self._passed is True)

    def _unseen(self, error: EnclaveError) -> None:
        """Shows that nothing is known of this engine, and why. A verdict that still counts stays."""
        if self._passed is None:
            why = f"not looked at: {error}"
            self._states = tuple(
                Protection(name, ProtectionState.UNKNOWN, why if name == GUEST else "") for name in PROTECTION_NAMES
            )
            self._metrics.daemon.protections(self._states)

    async def _found_of_one(self, canary: Looking, image: str) -> tuple[Protection, ...]:
        """Looks until one and the same engine was there from the beginning of a look to its end."""
        for _ in range(LOOKS_MOST):
            doubts = self._doubts
            states = await self._found(canary, image)
            if self._doubts == doubts:
                return states
            log.info("the engine may have been replaced during a look at it; it is looked at again")
        raise EngineUnavailable("engine", f"it went away or was replaced during each of {LOOKS_MOST} looks at it")

    async def _found(self, canary: Looking, image: str) -> tuple[Protection, ...]:
        self._unmade = ""
        why = ""
        for _ in range(ATTEMPTS):
            try:
                async with asyncio.timeout(LOOK_MOST_S):
                    return await canary.look(image)
            except TimeoutError:
                raise EngineUnavailable(
                    "engine", f"a canary was not ready within {LOOK_MOST_S:g} s; look at the load and at the engine"
                ) from None
            except (EngineUnavailable, ImageNotFound, ImageUnusable, NoSpace):
                raise  # that says nothing about protections
            except EngineRefused as error:
                why = str(error)
        self._unmade = why
        return all_failed_by(GUEST, f"no sandbox can be made: {why}")

    def _conclude(self, states: tuple[Protection, ...]) -> None:
        self._states = states
        self._looked_at = asyncio.get_running_loop().time()
        by_state = {
            state: [one.name for one in states if one.state is state]
            for state in ProtectionState
            if any(one.state is state for one in states)
        }
        self._passed = ProtectionState.FAILED not in by_state and ProtectionState.EFFECTIVE in by_state
        self._metrics.daemon.protections(states)
        shown = {state.value: ", ".join(names) for state, names in by_state.items()}
        if self._passed:
            self._has_passed = True
            log.info("protections work", extra=shown)
        else:
            log.error("protections do not work; nothing is handed out", extra={**shown, "why": self.trouble})
            if not self._has_passed:
                self.refused.set()
        for one in states:
            if one.state is ProtectionState.WAIVED:
                log.warning("protection waived", extra={"protection": one.name, "why": one.detail})


def _log_fault(task: asyncio.Task[None]) -> None:
    """Tells of a fault of our own, which nobody may be waiting for."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, EnclaveError):
        log.error("a look at protections broke off; nothing is handed out", exc_info=error)


async def _nobody_listens(available: bool) -> None:
    """Before the daemon says who is to hear of it."""
