"""Log lines: structured, escaped, and silent about what callers sent."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from enclaved import log
from enclaved.errors import SandboxNotFound


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("asyncio", "aiohttp.access")}
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


def lines(form: Any, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    log.configure(level, form, stream)
    return stream


def test_a_line_is_one_json_object_with_event_and_fields(root):
    stream = lines("json")
    logging.getLogger("enclaved.test").info("sandbox created", extra={"image": "python:3.11", "took_s": 0.5})
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "event": "sandbox created",
        "logger": "enclaved.test",
        "image": "python:3.11",
        "took_s": 0.5,
    }


HOSTILE = 'x\n{"level": "error", "event": "forged"}\r\x1b[31m\x00\u2028'


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_value_can_forge_a_line_or_send_control_bytes(root, form):
    stream = lines(form)
    logging.getLogger("enclaved.test").warning(HOSTILE, extra={"sandbox": HOSTILE, "many": [HOSTILE]})
    written = stream.getvalue()
    assert written.endswith("\n")
    assert len(written[:-1].splitlines()) == 1
    assert written[:-1].isprintable()


def test_text_lines_quote_only_what_needs_it(root):
    stream = lines("text")
    logging.getLogger("enclaved.test").info("engine", extra={"version": "20.10", "why": "no answer", "n": 3, "e": ""})
    assert stream.getvalue().split(" ", 1)[1] == 'info    engine version=20.10 why="no answer" n=3 e=""\n'


def test_the_level_is_obeyed(root):
    stream = lines("json", "warning")
    logging.getLogger("enclaved.test").info("quiet")
    logging.getLogger("enclaved.test").warning("loud")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]


async def test_bound_fields_stay_in_their_task(root):
    stream = lines("json")
    logger = logging.getLogger("enclaved.test")

    async def call(name: str) -> None:
        log.bind(rpc=name, sandbox_id="")
        await asyncio.sleep(0)
        logger.info("call")

    await asyncio.gather(call("A"), call("B"))
    logger.info("outside")
    written = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("rpc") for line in written] == ["A", "B", None]
    assert all("sandbox_id" not in line for line in written)


def failing(error: Exception) -> None:
    try:
        raise error
    except type(error):
        logging.getLogger("enclaved.test").exception("failed")


def test_an_unexpected_exception_is_logged_with_frames_but_without_its_text(root):
    stream = lines("json")
    failing(ValueError("SECRET=hunter2"))
    line = json.loads(stream.getvalue())
    assert line["exception"] == "builtins.ValueError"
    assert line["frames"][-1].endswith("failing")
    assert "hunter2" not in stream.getvalue()


def test_at_level_debug_the_text_is_logged_too(root):
    stream = lines("json", "debug")
    failing(ValueError("something"))
    assert json.loads(stream.getvalue())["text"] == "something"


def test_texts_of_our_own_errors_and_of_the_kernel_are_always_logged(root):
    stream = lines("text")
    failing(SandboxNotFound("box"))
    failing(OSError(28, "No space left on device"))
    assert "sandbox 'box' not found" in stream.getvalue()
    assert "No space left" in stream.getvalue()


def test_a_very_long_value_is_cut(root):
    stream = lines("json")
    logging.getLogger("enclaved.test").info("long", extra={"value": "x" * 100_000})
    assert len(stream.getvalue()) < 3000
