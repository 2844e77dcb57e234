"""The look at protections, as the daemon's start and end need it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final

from enclaved.config import Settings
from enclaved.core.background import Background
from enclaved.core.boot import Boot
from enclaved.core.canary import Canary
from enclaved.core.protections import Protections
from enclaved.daemon._errors import Unprotected
from enclaved.metrics import Metrics
from enclaved.runtime.docker.inspection import DockerInspector

REMOVE_CANARY_S: Final = 15.0


def look_with_docker(
    stack: AsyncExitStack, settings: Settings, embedded: bool, boot: Boot, background: Background, metrics: Metrics
) -> tuple[Protections, DockerInspector]:
    """Makes what looks at the protections of the configured engine; an embedded daemon looks with its first sandbox."""
    waived = tuple(settings.waive.protections)
    inspector = DockerInspector(settings.engine.url, waived=waived)
    stack.push_async_callback(inspector.close)
    canary = Canary(
        boot=boot,
        inspector=inspector,
        background=background,
        waived=waived,
        needs_ceiling=settings.ceiling.required,
    )
    image = "" if embedded else settings.images.default
    protections = Protections(background=background, metrics=metrics, canary=canary, image=image)
    stack.push_async_callback(protections.close, REMOVE_CANARY_S)
    return protections, inspector


async def first_verdict(protections: Protections, stop: asyncio.Event) -> None:
    """Waits for the first look, or until the engine was found away, or for the end. Raises `Unprotected`."""
    await _first_of(protections.settled(), stop.wait())
    _check(protections)


async def end_asked(protections: Protections, stop: asyncio.Event, *, embedded: bool) -> None:
    """Waits until the daemon is to stop. Raises `Unprotected` where the first look that there could be has failed.

    An embedded daemon goes on: whoever asks it for a sandbox is told.
    """
    if embedded:
        await stop.wait()
        return
    await _first_of(stop.wait(), protections.refused.wait())
    _check(protections)


def _check(protections: Protections) -> None:
    if protections.refused.is_set():
        raise Unprotected(protections.trouble)


async def _first_of(*waits: Coroutine[Any, Any, object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
