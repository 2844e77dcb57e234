"""Every Python block of the pages for users runs, and prints what the page shows; so do the commands of the README."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click
import pytest

from enclaved.cli import enclaved
from tests.docs.pages import ROOT, Block, blocks
from tests.docs.place import A_MANAGER, A_SANDBOX, PRELUDE, Place

PAGES = (
    "README.md",
    "docs/python.md",
    "docs/executions.md",
    "docs/contexts.md",
    "docs/files.md",
    "docs/sandboxes.md",
    "docs/pools.md",
    "docs/tools.md",
)
ALL_PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
COMPLETE = [block for page in PAGES for block in blocks(page, "python") if block.is_complete]
PROGRAMS = [block for block in COMPLETE if "8000" not in block.text]
SERVER, CLIENT = (block for block in COMPLETE if "8000" in block.text)
COMMANDS = [block for block in blocks("README.md") if block.language in ("shell", "bash")]
CHINESE_COMMANDS = [block for block in blocks("README.zh.md") if block.language in ("shell", "bash")]

NOT_RUN = re.compile(
    r"""git\ clone\ .* | cd\ ms-enclave                           # the tests run in a clone
    | pip\ install\ .* | python\ -m\ venv\ .* | source\ .*        # and in an environment with the package
    | python\ -m\ ms_enclave\.run_server                         # test_documented_api runs it
    | \./scripts/(?P<script>quickstart|test)                      # tests/scripts shows what these do
    | pytest(\ .*)? | python\ (?P<example>examples/\w+\.py)       # this is one of them; test_examples runs those
    """,
    re.VERBOSE,
)


def test_every_block_is_in_a_language_that_is_tested():
    known = {"python", "shell", "bash", "text"}
    assert {block.language for page in (*PAGES, "README.zh.md") for block in blocks(page)} <= known


@pytest.mark.parametrize("page", ALL_PAGES)
def test_links_lead_somewhere(page: str):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.docker
@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_a_program_prints_what_the_page_shows(place: Place, block: Block):
    printed = place.run_program(block.text)
    assert block.shown_output in (None, printed)


@pytest.mark.docker
def test_a_server_serves_a_client(place: Place):
    with place.server_program(SERVER.text):
        assert place.run_program(CLIENT.text) == CLIENT.shown_output


@pytest.mark.docker
@pytest.mark.parametrize("page", PAGES)
def test_the_pieces_of_a_page_print_what_it_shows(place: Place, page: str):
    pieces = [block for block in blocks(page, "python") if not block.is_complete]
    end = "await manager.stop()\nawait sandbox.cleanup()"
    printed = place.run_parts([PRELUDE + A_SANDBOX + A_MANAGER, *(piece.text for piece in pieces), end])
    for piece, output in zip(pieces, printed[1:-1], strict=True):
        assert piece.shown_output in (None, output), str(piece)


@pytest.mark.parametrize("block", [*COMMANDS, *CHINESE_COMMANDS], ids=str)
def test_what_commands_name_is_there(block: Block):
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for line in filter(None, (line.partition("#")[0].strip() for line in block.text.splitlines())):
        known = NOT_RUN.fullmatch(line)
        if known is None:
            assert block in COMMANDS[-3:], f"{block}: {line} is run by no test"
        elif known["script"]:
            assert (ROOT / "scripts" / known["script"]).stat().st_mode & 0o111
        elif known["example"]:
            assert (ROOT / known["example"]).is_file()


@pytest.mark.docker
def test_a_daemon_of_ones_own_serves_a_program_that_is_told_where_it_is(place: Place):
    run, use, config = (block.text for block in COMMANDS[-3:])
    home = {"HOME": str(place.directory), "ENCLAVED_LISTEN_METRICS": "127.0.0.1:0"}
    (place.directory / "program.py").write_text(PROGRAMS[0].text)
    with place.daemon("bash", "-euc", f"exec {run}", **home):
        assert place.run("bash", "-euc", use, **home) == PROGRAMS[0].shown_output
        assert list(place.run_directory.iterdir()) == [], "the program started a daemon of its own"
    assert 'listen.metrics = "127.0.0.1:0"' in place.run("bash", "-euc", config, **home)


def test_the_commands_for_operators_on_the_chinese_page_are_those_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("policy.toml").touch()
    lines = [line for block in blocks("README.zh.md", "text") for line in block.text.splitlines()]
    found = [line.rpartition("| ")[2].split() for line in lines if "enclaved " in line]
    assert {words[1] for words in found} == {"token", "policy", "doctor"}
    for words in found:
        command: click.Command = enclaved
        rest = words[1:]
        while isinstance(command, click.Group):
            command = command.commands[rest.pop(0)]
        command.make_context(words[1], rest)  # refuses options and arguments that there are not
