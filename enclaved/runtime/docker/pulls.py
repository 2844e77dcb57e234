"""One pull of an image, followed by any number of readers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Coroutine

from enclaved.model import PullProgress

LAYERS_MAX = 200
_STATUS_LENGTH_MAX = 200
_LAYER = re.compile(r"[0-9a-f]{12,64}")


class Pull:
    """A pull that runs. What is kept of it is the latest word on each layer."""

    def __init__(self, name: str, work: Callable[[Callable[[object], None]], Coroutine[object, object, None]]) -> None:
        self._latest: dict[str, PullProgress] = {}
        self._readers: list[_Reader] = []
        self.task = asyncio.create_task(work(self._heard), name=f"pull {name}")
        self.task.add_done_callback(lambda _: self._wake())

    def _heard(self, message: object) -> None:
        step = _progress(message)
        if step is None or (step.layer not in self._latest and len(self._latest) >= LAYERS_MAX):
            return
        self._latest[step.layer] = step
        for reader in self._readers:
            reader.waiting[step.layer] = step
        self._wake()

    def _wake(self) -> None:
        for reader in self._readers:
            reader.news.set()

    async def follow(self) -> AsyncGenerator[PullProgress]:
        """Tells how far it is until it has ended, and raises what it raised. A slow reader gets the latest only."""
        reader = _Reader(self._latest)
        self._readers.append(reader)
        try:
            while reader.waiting or not self.task.done():
                if not reader.waiting:
                    reader.news.clear()
                    await reader.news.wait()
                while reader.waiting:
                    yield reader.waiting.pop(next(iter(reader.waiting)))
        finally:
            self._readers.remove(reader)
        await asyncio.shield(self.task)


class _Reader:
    """Somebody who follows a pull: at most one step of each layer waits for it."""

    def __init__(self, latest: dict[str, PullProgress]) -> None:
        self.waiting = dict(latest)
        self.news = asyncio.Event()


def _progress(message: object) -> PullProgress | None:
    """Reads what an engine says of a pull; ``None`` for what cannot be understood."""
    if not isinstance(message, dict) or not isinstance(status := message.get("status"), str):
        return None
    name = message.get("id")
    layer = name if isinstance(name, str) and _LAYER.fullmatch(name) else ""
    detail = message.get("progressDetail")
    numbers = detail if isinstance(detail, dict) else {}
    return PullProgress(
        layer=layer,
        status=status[:_STATUS_LENGTH_MAX].encode("utf-8", "replace").decode(),
        current_bytes=_count(numbers.get("current")),
        total_bytes=_count(numbers.get("total")),
    )


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**63 else 0
