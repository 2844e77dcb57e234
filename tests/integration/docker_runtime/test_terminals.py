"""Terminals in a container, where PID 1 has next to no capability and the root file system cannot be written."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from enclaved.model import TerminalSize, Verdict
from enclaved.runtime.docker import DockerRuntime
from tests.service.guest.laboratory import Box, Story, ended, follow, laboratory, printed

SIZE = TerminalSize(30, 100)


@pytest.fixture
async def box(runtime: DockerRuntime) -> AsyncIterator[Box]:
    async with laboratory(runtime) as lab:
        yield await lab.box()


async def test_a_terminal_belongs_to_the_sandboxs_user(box: Box) -> None:
    code = (
        "import os\n"
        "name = os.ttyname(0)\n"
        "found = os.stat(name)\n"
        "print(found.st_uid == os.getuid(), oct(found.st_mode & 0o777), tuple(os.get_terminal_size()))\n"
        "for path in (name, '/dev/tty', '/dev/stdin', '/dev/stdout'): os.close(os.open(path, os.O_RDWR))\n"
        "os.fchmod(0, 0o600)\n"
        "print(os.tcgetpgrp(0) == os.getpid())\n"
    )
    execution = await box.open_python(code, isolated=True, terminal=SIZE)
    story = await follow(execution)
    assert story.screen == "True 0o620 (100, 30)\r\nTrue\r\n"
    assert story.finished is not None
    assert story.finished.verdict is Verdict.EXITED


async def test_pid_1_is_root_again_without_more_than_before_and_nobody_may_look_into_it(box: Box) -> None:
    look = (
        "import os\n"
        "lines = dict(line.rstrip().split(':\\t', 1) for line in open('/proc/1/status') if ':\\t' in line)\n"
        "print(lines['Uid'].split(), lines['Gid'].split(), lines['CapEff'], lines['CapPrm'])\n"
        "for name in ('fd', 'environ', 'mem', 'maps'):\n"
        "    try: (os.listdir if name == 'fd' else open)(f'/proc/1/{name}')\n"
        "    except PermissionError: continue\n"
        "    print('can look into', name)\n"
    )
    before = printed(await box.isolated(look))
    assert ended(await box.shell("true")).exit_code == 0
    story = await follow(await box.open_shell("tty", terminal=SIZE))
    assert story.screen == "/dev/pts/0\r\n"
    assert printed(await box.isolated(look)) == before
    assert before == "['0', '0', '0', '0'] ['0', '0', '0', '0'] 00000000000000e0 00000000000000e0\n"


async def test_a_shell_has_job_control(box: Box) -> None:
    execution = await box.open("shell_executor", {"command": ["bash", "--norc", "-i"]}, terminal=SIZE)

    async def talk(story: Story) -> None:
        if len(story.chunks) == 1:  # the prompt
            await execution.write_stdin(b"sleep 1000 & kill %1; wait; echo Done $((6*7)); exit 3\n")

    story = await follow(execution, on_output=talk)
    assert "Done 42\r\n" in story.screen
    assert "no job control" not in story.screen
    assert story.finished is not None
    assert story.finished.exit_code == 3
