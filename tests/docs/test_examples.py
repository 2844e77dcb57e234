"""The examples run from anywhere, print what they show, and leave no container behind."""

from __future__ import annotations

import sys
import textwrap

import pytest

from tests.docs.pages import ROOT
from tests.docs.place import Place

FOLDER = ROOT / "examples"

PRINTED = {
    "usage_examples": """
        --- basic: Runs Python code, and shows what it printed.
        2 + 2 = 4

        --- variables: Keeps variables from call to call, except in a call that is isolated.
        mean: 2.5
        data in an isolated call: False

        --- errors: Tells apart the ways in which a program can fail. None of them is an exception here.
        a syntax error: error, EXCEPTION: SyntaxError: unterminated string literal (detected at line 1)
        an exception: error, EXCEPTION: IndexError: list index out of range
        an exit code: error, EXITED: Command failed with exit code 3
        an endless loop: timeout, TIMEOUT: Command timed out after 2 seconds
        too much memory: error, OUT_OF_MEMORY: {out_of_memory}
        a crash: error, SIGNALED: Command failed with exit code 134 (killed by signal 6, SIGABRT)

        --- commands: Runs shell commands: a string through a shell, a list as it is.
        1 + ... + 100 = 5050
        exit code 2: ls: cannot access 'no such file': No such file or directory

        --- files: Puts a file in, lets a program work on it, and reads what it made.
        total: 7
        prices.csv: exists

        --- live: Shows output while the program runs.
        stdout: line 1
        stdout: line 2
        stdout: line 3

        --- many: Keeps several sandboxes in a manager, which removes them at its end.
        squares: [1, 4, 9]
        running: 3
        """,
    "custom_tool": """
        check_function(code, function, cases): Check a Python function against examples of what it should return
        3 of 3 right
        1 of 3 right
        0 of 3 right NameError: name 'prime' is not defined
        """,
    "sync_usage": """
        4 words
        thread 1, thread 2, thread 3
        """,
    "grading": """
        passed  right       correct
        passed  also right  correct
        failed  wrong       printed '39'
        failed  silent      printed ''
        failed  misspelt    EXCEPTION: NameError: name 'prnt' is not defined
        failed  unfinished  EXCEPTION: SyntaxError: '(' was never closed
        failed  endless     TIMEOUT: Command timed out after 2 seconds
        failed  greedy      OUT_OF_MEMORY: {out_of_memory}
        failed  crashing    SIGNALED: Command failed with exit code 139 (killed by signal 11, SIGSEGV)
        failed  hostile     EXCEPTION: OSError: [Errno 30] Read-only file system: '/etc/passwd'
        2 of 10 passed
        """,
    "streaming": """
        started; it may run for 30 s
        step 1: 20 MB
        step 2: 40 MB
        step 3: 60 MB
        EXITED, exit code 0
        samples came: True
        its memory grew beyond 40 MB: True
        it used the processor: True
        """,
    "interactive": """
        Who are you? <- Ada
        Hello Ada, which number? <- 12
        12 squared is 144
        EXITED
        """,
    "background": """
        listed: True
        step 1
        step 2
        step 3
        it ended: ('EXITED', 3)
        """,
    "web_server": """
        it is published on 127.0.0.1
        Hello from this machine
        this machine, seen from the server: closed
        """,
    "contexts": """
        left says L
        right says R
        a timeout: timeout - variables survived: True
        after a reset: False
        open: ['left', 'right']
        open at the end: []
        """,
}
OUT_OF_MEMORY = "killed by the kernel: the sandbox reached its memory limit (exit code 137)"


def test_every_example_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*PRINTED, "server_example", "tour"}


@pytest.mark.docker
@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_shows(place: Place, name: str):
    printed = place.run(sys.executable, FOLDER / f"{name}.py")
    assert printed.strip() == textwrap.dedent(PRINTED[name]).strip().format(out_of_memory=OUT_OF_MEMORY)


@pytest.mark.docker
def test_the_server_serves_the_client_that_it_shows(place: Place):
    program = FOLDER / "server_example.py"
    client = textwrap.dedent(program.read_text().partition("like this:\n")[2].partition('"""')[0])
    with place.server(sys.executable, program):
        assert place.run_program(client) == "42\n\n"


@pytest.mark.docker
def test_the_tour_ends_with_a_program_that_can_be_written_next(place: Place):
    printed = place.run(sys.executable, FOLDER / "tour.py")
    for wanted in ("TIMEOUT: ", "OUT_OF_MEMORY: ", "no network but: lo\n"):
        assert wanted in printed
    introduction, begin, program = printed.partition("    import asyncio\n")
    assert introduction.rstrip().endswith("The ten lines to write next:")
    program = textwrap.dedent(begin + program)
    assert len(program.strip().splitlines()) == 10
    assert place.run_program(program) == "ExecutionStatus.SUCCESS 42\n\n"
