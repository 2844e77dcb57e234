"""Progress, commands behind it, and how a script ends."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripts.loading import SCRIPTS, load

console = load("_console")


@pytest.fixture(autouse=True)
def _signal_handlers_stay_as_they_were() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_a_step_is_plain_lines() -> None:
    stream = io.StringIO()
    with console.Progress("building", stream=stream) as progress:
        progress.update(1, "half")
    first, last = stream.getvalue().splitlines()
    assert first == "building ..."
    assert last.startswith("building: done (")
    assert "\r" not in stream.getvalue()


def test_without_a_terminal_a_long_step_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_LINE_S", 0.001)
    stream = io.StringIO()
    with console.Progress("building", total=4, stream=stream) as progress:
        progress.update(1, "unpacking libc6")
        while "unpacking libc6" not in stream.getvalue():
            pass
    assert "building [######------------------]  25%" in stream.getvalue()


def test_on_a_terminal_a_step_is_one_line_that_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "REDRAW_S", 0.001)
    stream = Terminal()
    with console.Progress("building", total=2, stream=stream) as progress:
        progress.update(1, "half of it")
        while "50%" not in stream.getvalue():
            pass
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith(" s)\n")


def test_a_bar_never_says_100_percent_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_LINE_S", 0.001)
    stream = io.StringIO()
    with console.Progress("building", total=2, stream=stream) as progress:
        progress.update(5)
        while "99%" not in stream.getvalue():
            pass
    assert "100%" not in stream.getvalue()


@pytest.mark.parametrize(("error", "word"), [(RuntimeError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_a_step_says_how_it_ended(error: type[BaseException], word: str) -> None:
    stream = io.StringIO()
    with pytest.raises(error), console.Progress("building", stream=stream):
        raise error
    assert stream.getvalue().splitlines()[-1].startswith(f"building: {word} (")


def test_a_failed_command_shows_the_end_of_what_it_wrote() -> None:
    with console.Progress("x", stream=io.StringIO()) as progress, pytest.raises(console.CommandFailed) as caught:
        console.run(["sh", "-c", "seq 40; echo oops >&2; exit 3"], progress=progress)
    assert caught.value.exit_code == 3
    assert caught.value.tail[-2:] == ["40", "oops"]
    assert len(caught.value.tail) == console.TAIL_LINES


def test_an_interrupted_script_kills_all_that_its_command_started(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # A grandchild holds the FIFO open for writing: reading ends when it is gone.
    command = f"sh -c 'echo ready; exec sleep 1000' > {fifo} & wait"
    script = subprocess.Popen(
        [sys.executable, SCRIPTS / "_console.py", "sleeping", "sh", "-c", command], stderr=subprocess.PIPE, text=True
    )
    with fifo.open() as reader:
        assert reader.readline() == "ready\n"
        script.send_signal(signal.SIGINT)
        assert reader.read() == ""
    _, said = script.communicate(timeout=30)
    assert script.returncode == 130
    assert said.splitlines()[-1] == "sleeping: interrupted"


def test_a_refusal_is_one_sentence_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise console.Refused("there is no engine. Fix: start one")

    assert console.run_script("ensure-engine", work) == 1
    assert capsys.readouterr().err == "ensure-engine: there is no engine. Fix: start one\n"


def test_a_full_disk_is_one_sentence_too(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise OSError(28, "No space left on device", "/cache")

    assert console.run_script("build-image", work) == 1
    assert capsys.readouterr().err == "build-image: [Errno 28] No space left on device: '/cache'\n"
