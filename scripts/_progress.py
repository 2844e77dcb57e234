"""One line that shows how far a long step is: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from types import TracebackType
from typing import TextIO

BAR_WIDTH = 24
REDRAW_S = 0.2
PLAIN_LINE_S = 5.0


class Progress:
    """Shows one long step while it is used as a context; a thread keeps the clock moving when nothing else does.

    ``total`` is how many units make the step complete; 0 shows the elapsed time only.
    """

    def __init__(self, title: str, *, total: float = 0, stream: TextIO | None = None) -> None:
        self._title = title
        self._total = total
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._done: float = 0
        self._detail = ""
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        if not self._terminal:
            self._write(f"{self._title} ...\n")
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._ticker.join()
        elapsed = time.monotonic() - self._started
        outcome = "done" if kind is None else "stopped" if kind is KeyboardInterrupt else "failed"
        clear = "\r\033[K" if self._terminal else ""
        self._write(f"{clear}{self._title}: {outcome} ({elapsed:.1f} s)\n")

    def update(self, done: float, detail: str = "") -> None:
        """Says how much is done by now, and what is being done."""
        self._done = done
        self._detail = detail

    def _tick(self) -> None:
        while not self._ended.wait(REDRAW_S if self._terminal else PLAIN_LINE_S):
            if self._terminal:
                self._write(f"\r{self._line()[: _columns() - 1]}\033[K")
            else:
                self._write(self._line() + "\n")

    def _line(self) -> str:
        elapsed = f"{time.monotonic() - self._started:.0f} s"
        if not self._total:
            return f"{self._title}  {elapsed}  {self._detail}".rstrip()
        part = min(self._done / self._total, 0.99)
        filled = int(part * BAR_WIDTH)
        bar = "#" * filled + "-" * (BAR_WIDTH - filled)
        return f"{self._title} [{bar}] {part:4.0%}  {elapsed}  {self._detail}".rstrip()

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _columns() -> int:
    return max(shutil.get_terminal_size().columns, 40)
