"""Every command of docs/grpc.md runs as printed, one after the other, and prints what the page shows."""

from __future__ import annotations

import re
import shlex

from tests.docs.pages import blocks
from tests.docs.place import a_place

END = "-- end of a block --"


def test_the_commands_of_the_page_print_what_it_shows(default_image: str):
    first, *rest = blocks("docs/grpc.md", "shell")
    assert len(rest) > 5
    script = "".join(f"{block.text}\necho {shlex.quote(END)}\n" for block in rest)
    with a_place() as place:
        home = {"HOME": str(place.directory), "ENCLAVED_LISTEN_METRICS": ""}
        with place.daemon("bash", "-euc", f"exec {first.text}", **home):
            printed = place.run("bash", "-eu", "-o", "pipefail", "-c", script, **home).split(f"{END}\n")
    for block, output in zip(rest, printed, strict=False):
        # Go writes JSON with one space after a colon or two, differently from build to build.
        assert re.sub(r": +", ": ", output) == block.shown_output, str(block)
    assert len(printed) == len(rest) + 1
