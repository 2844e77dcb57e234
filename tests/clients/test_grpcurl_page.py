"""Every command of docs/grpcurl.md runs as printed, one after the other, and prints what the page shows."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import free_port
from tests.docs.pages import blocks
from tests.docs.place import a_place

END = "-- end of a block --"
PAGE_TCP = "127.0.0.1:50061"


@pytest.mark.docker
def test_the_commands_of_the_page_print_what_it_shows(tmp_path: Path) -> None:
    """The program ``grpcurl`` is one that calls ``buf curl``, which can be installed everywhere."""
    program = tmp_path / "grpcurl"
    command = shlex.join([sys.executable, str(Path(__file__).with_name("grpcurl.py"))])
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o755)
    first, *rest = blocks("docs/grpcurl.md", "shell")
    assert len(rest) > 7
    own_tcp = f"127.0.0.1:{free_port()}"
    script = "".join(f"{block.text}\necho {shlex.quote(END)}\n" for block in rest).replace(PAGE_TCP, own_tcp)
    with a_place() as place:
        path = os.pathsep.join([str(tmp_path), place.environment()["PATH"]])
        home = {"HOME": str(place.directory), "ENCLAVED_LISTEN_METRICS": "", "PATH": path}
        with place.daemon("bash", "-euc", f"exec {first.text.replace(PAGE_TCP, own_tcp)}", **home):
            printed = place.run("bash", "-euc", script, **home).split(f"{END}\n")
    for block, output in zip(rest, printed, strict=False):
        # Go writes JSON with one space after a colon or two, differently from build to build.
        assert re.sub(r": +", ": ", output) == (block.shown_output or ""), str(block)
    assert len(printed) == len(rest) + 1
