"""Shows how far the pull of an image is: bars on a terminal, a line for each change of state elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ms_enclave._transports.base import PullProgress


class _Display(Protocol):
    def show(self, seen: PullProgress) -> None:
        """Shows the latest."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Bars:
    """A bar for each layer."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:12}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=console,
            expand=True,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, seen: PullProgress) -> None:
        if not seen.layer:
            self._progress.console.print(seen.status, markup=False, highlight=False)
            return
        if seen.layer not in self._bars:
            self._bars[seen.layer] = self._progress.add_task(seen.layer[:12], total=None, status="")
        bar, total = self._bars[seen.layer], seen.total_bytes or None
        self._progress.update(bar, completed=seen.current_bytes, total=total, status=seen.status)


class _Lines(contextlib.AbstractContextManager["_Lines"]):
    """A line for each change of state, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: dict[str, str] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._last.clear()

    def show(self, seen: PullProgress) -> None:
        if self._last.get(seen.layer) != seen.status:
            self._last[seen.layer] = seen.status
            line = f"{seen.layer[:12]}: {seen.status}" if seen.layer else seen.status
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


async def follow(pull: AsyncIterator[PullProgress], *, quiet: bool) -> str:
    """Shows a pull on standard error until it is complete, and returns the image's id on the engine."""
    console = Console(stderr=True)
    display: _Display = _Bars(console) if console.is_terminal and not quiet else _Lines(console)
    image_id = ""
    with display:
        async for seen in pull:
            image_id = seen.image_id or image_id
            if seen.status and not quiet:
                display.show(seen)
    return image_id
