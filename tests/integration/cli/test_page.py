"""docs/cli.md: its commands run as printed, and its exit codes are those there are."""

from __future__ import annotations

import re

from ms_enclave._cli.exits import ExitCode

from tests.docs.pages import ROOT, blocks
from tests.docs.place import a_place


def test_the_commands_of_the_page_print_what_it_shows() -> None:
    found = blocks("docs/cli.md", "shell")
    assert len(found) > 2
    with a_place() as place:
        for block in found:
            assert place.run("bash", "-euc", block.text) == block.shown_output, str(block)


def test_the_page_has_every_exit_code() -> None:
    shown = {int(code) for code in re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)}
    assert shown == set(ExitCode)
