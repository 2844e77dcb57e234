"""What the scripts say: progress of a long step, one clear sentence when something cannot be done, exit codes.

As a program it runs a command behind one line of progress: ``_console.py TITLE COMMAND...``. The command's own output
is shown only if it fails.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import TextIO

BAR_WIDTH = 24
REDRAW_S = 0.2
PLAIN_LINE_S = 5.0
PLAIN_LINE_CHARACTERS = 120
TAIL_LINES = 15


class Refused(Exception):
    """Says in one sentence why a script cannot do its work, and what to do about it."""


class CommandFailed(Exception):
    """A command ended with an exit code other than 0; carries the last lines that it wrote."""

    def __init__(self, command: Sequence[str], exit_code: int, tail: Sequence[str]) -> None:
        super().__init__(f"{command[0]} failed with exit code {exit_code}")
        self.exit_code = exit_code
        self.tail = list(tail)


class Progress:
    """Shows one long step while it is used as a context: a bar on a terminal, a plain line now and then elsewhere.

    ``total`` is how many units make the step complete; 0 shows the elapsed time only. A thread keeps the clock moving
    when nothing else does.
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
        outcome = "done" if kind is None else "interrupted" if kind is KeyboardInterrupt else "failed"
        clear = "\r\033[K" if self._terminal else ""
        self._write(f"{clear}{self._title}: {outcome} ({elapsed:.1f} s)\n")

    def update(self, done: float, detail: str = "", *, total: float | None = None) -> None:
        """Says how much is done by now, what is being done, and perhaps a new idea of the total."""
        self._done = done
        self._detail = detail
        if total is not None:
            self._total = total

    def _tick(self) -> None:
        while not self._ended.wait(REDRAW_S if self._terminal else PLAIN_LINE_S):
            if self._terminal:
                width = max(shutil.get_terminal_size().columns, 40)
                self._write(f"\r{self._line()[: width - 1]}\033[K")
            else:
                self._write(f"{self._line()[:PLAIN_LINE_CHARACTERS]}\n")

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


def run(
    command: Sequence[str],
    *,
    progress: Progress,
    environment: Mapping[str, str] | None = None,
    describe: Callable[[str], str] = str.strip,
) -> None:
    """Runs a command to its end; each line that it writes moves the progress by one.

    The command is a session of its own. When this process is interrupted, all of it is killed. Raises
    ``CommandFailed`` if it fails.
    """
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    with process:
        try:
            for count, line in enumerate(process.stdout or (), 1):
                tail.append(line.rstrip())
                progress.update(count, describe(line))
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if status != 0:
        raise CommandFailed(command, status, tail)


def run_script(name: str, work: Callable[[], None]) -> int:
    """Runs a script's work and returns its exit code: 0 done, 1 refused with a sentence, 130 interrupted."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    try:
        work()
    except CommandFailed as error:
        print(f"{name}: {error}; it wrote:", *error.tail, sep="\n  ", file=sys.stderr)
        return 1
    except (Refused, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    title, *command = arguments

    def work() -> None:
        with Progress(title) as progress:
            run(command, progress=progress)

    return run_script(title, work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
