"""The guest meets the Python of the image: the same few things must work on every interpreter there is, from 3.8 on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from enclaved.model import TerminalSize, Verdict
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.guest.laboratory import Box, ended, follow, laboratory, printed, text

ROOT = Path(__file__).resolve().parents[2]
OLDEST = (3, 8)
NOBODY = 65534

PROBE = """
import asyncio, json, sys
sys.path[:0] = {path!r}
from tests.conformance.test_guest_pythons import walk_through
print(json.dumps(asyncio.run(walk_through({python!r}))))
"""


def interpreters() -> dict[str, Path]:
    """One interpreter of each version: the system's first, then those of PATH and of pyenv."""
    folders = [Path("/usr/bin"), Path("/usr/local/bin")]
    folders += [Path(folder) for folder in os.environ.get("PATH", "").split(":") if folder]
    folders += sorted((Path.home() / ".pyenv" / "versions").glob("*/bin"))
    found: dict[str, Path] = {f"{sys.version_info[0]}.{sys.version_info[1]}": Path(sys.executable)}
    for folder in folders:
        # pyenv's shims are scripts that may or may not find something; and PATH may name what this user cannot pass.
        for path in sorted(folder.glob("python3.*")) if folder.name != "shims" and os.access(folder, os.X_OK) else []:
            version = re.fullmatch(r"python(3)\.(\d+)", path.name)
            if version and (int(version[1]), int(version[2])) >= OLDEST and os.access(path, os.X_OK):
                found[path.name.removeprefix("python")] = path
    return found


INTERPRETERS = interpreters()


def passable(path: Path) -> bool:
    """Whether every user may come to a file."""
    return all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents)


@pytest.fixture
def readable(request: pytest.FixtureRequest) -> Iterator[str]:
    """An interpreter that users of sandboxes may read, also where it lies in a home that is closed to them.

    A script takes the interpreter's place: it mounts its directory elsewhere, which is seen only by the guest that it
    then becomes, since that has a mount namespace of its own.
    """
    python = INTERPRETERS[request.param].resolve()
    if os.getuid() != 0 or passable(python):
        yield str(python)
        return
    with tempfile.TemporaryDirectory(prefix="py") as folder:
        Path(folder).chmod(0o755)
        home, script = Path(folder) / "home", Path(folder) / "python"
        home.mkdir(0o755)
        script.write_text(
            f'#!/bin/sh\nmount --bind {python.parent.parent} {home} && exec {home / "bin" / python.name} "$@"\n'
        )
        script.chmod(0o755)
        yield str(script)


async def walk_through(python: str | None) -> dict[str, str]:
    """Does a little of everything in a sandbox whose guest has this interpreter; returns its version and mode."""
    async with laboratory(SubprocessRuntime(python)) as lab:
        box = await lab.box()
        await contexts(box)
        await programs(box)
        await terminals_and_signals(box)
        await files(box)
        await ends(box)
        assert box.record.link is not None
        mode = "container" if lab.runtime._in_namespace else "child"
        return {
            "python": box.record.link.python_version,
            "mode": mode,
            "uid": printed(await box.shell("id -u")).strip(),
        }


async def contexts(box: Box) -> None:
    assert printed(await box.python("x = 41\nprint('first')")) == "first\n"
    assert printed(await box.python("x += 1\nprint(x, __name__)")) == "42 __main__\n"
    result = await box.python("def f():\n    return 1 / 0\nf()")
    shown = [line for line in text(result.stderr).splitlines() if set(line) - set(" ^~")]
    assert shown == [
        "Traceback (most recent call last):",
        '  File "<call 3>", line 3, in <module>',
        "    f()",
        '  File "<call 3>", line 2, in f',
        "    return 1 / 0",
        "ZeroDivisionError: division by zero",
    ]
    result = await box.python("print('missing")
    assert text(result.stderr).startswith('  File "<call 4>", line 1\n    print(\'missing\n')
    assert ended(await box.python("import time; time.sleep(600)", timeout_s=0.2)).verdict is Verdict.TIMEOUT
    assert printed(await box.python("import os; print(x)\nos.close(0)\nos.close(1)")) == "42\n"
    assert ended(await box.python("import sys; sys.exit('bye')")).exit_code == 1
    finished = ended(await box.python("import os; os._exit(3)"))
    assert (finished.exit_code, finished.state_preserved) == (3, False)
    assert len((await box.python("pass")).notices) == 1


async def programs(box: Box) -> None:
    code = (
        "import atexit, concurrent.futures, multiprocessing, subprocess, threading\n"
        "atexit.register(print, 'at exit')\n"
        "threading.Timer(0.01, print, ['thread']).start()\n"
        "with concurrent.futures.ThreadPoolExecutor() as pool: print(sum(pool.map(abs, [-1, 2])))\n"
        "print(subprocess.run(['echo', 'child'], stdout=subprocess.PIPE).stdout)\n"
        "def double(n): return 2 * n\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool: print(pool.map(double, [1, 2]))\n"
        "open('left_open', 'w').write('flushed')\n"
    )
    result = await box.isolated("import warnings; warnings.simplefilter('ignore')\n" + code)
    assert sorted(printed(result).splitlines()) == sorted(["3", "b'child\\n'", "[2, 4]", "thread", "at exit"])
    failing = (
        "import atexit\natexit.register(lambda: 1/0)\nf = open('other', 'w')\nf.write('flushed')\nraise KeyError('k')"
    )
    result = await box.isolated(failing)
    assert (ended(result).verdict, ended(result).exit_code) == (Verdict.EXCEPTION, 1)
    assert printed(await box.shell("cat left_open other")) == "flushedflushed"
    execution = await box.open_shell("cat", stdin=True)
    await execution.write_stdin(b"x" * 300_000)
    await execution.end_input()
    assert printed(await execution.collect()) == "x" * 300_000
    outputs = await asyncio.gather(*(box.isolated(f"print({n})") for n in range(8)))
    assert [printed(output) for output in outputs] == [f"{n}\n" for n in range(8)]


async def terminals_and_signals(box: Box) -> None:
    code = "import os\nprint(os.ttyname(0) == os.ttyname(2), os.get_terminal_size().columns)\nprint(input())"
    execution = await box.open_python(code, isolated=True, terminal=TerminalSize(24, 70))
    await execution.write_stdin(b"typed\n")
    story = await follow(execution)
    assert sorted(story.screen.split("\r\n")) == ["", "True 70", "typed", "typed"]
    for isolated in (False, True):
        execution = await box.open_python("import time; time.sleep(600)", isolated=isolated)
        execution.signal(2)
        finished = (await follow(execution)).finished
        assert finished is not None
        assert finished.exception is not None
        assert finished.exception.type == "KeyboardInterrupt"
    execution = await box.open_shell("sleep 600")
    execution.signal(15)
    finished = (await follow(execution)).finished
    assert finished is not None
    assert (finished.verdict, finished.signal) == (Verdict.SIGNALED, 15)


async def files(box: Box) -> None:
    name, content = "d/f\N{SNAKE}", "h\N{LATIN SMALL LETTER E WITH ACUTE}"

    async def operation(kind: str, **parameters: str) -> str:
        return printed(await box.run("file_operation", {"operation": kind, "file_path": name, **parameters}))

    assert await operation("write", content=content) == f"File written successfully: {name}"
    assert await operation("read") == content
    assert name in await operation("list")
    assert await operation("delete") == f"Successfully deleted: {name}"
    assert await operation("exists") == "does not exist"


async def ends(box: Box) -> None:
    result = await box.shell("(setsid sh -c 'echo $$; exec sleep 600' &); sleep 600", timeout_s=0.3)
    assert ended(result).verdict is Verdict.TIMEOUT
    if os.getuid() == 0:
        assert await box.survivors(result.stdout) == []
    assert ended(await box.isolated("import os; os.kill(os.getpid(), 11)")).signal == 11


def test_there_is_an_interpreter() -> None:
    assert INTERPRETERS


@pytest.mark.parametrize("readable", list(INTERPRETERS), indirect=True)
async def test_the_guest_works_on(readable: str, request: pytest.FixtureRequest) -> None:
    version = request.node.callspec.params["readable"]
    found = await walk_through(readable)
    assert found["python"].startswith(f"{version}.")
    assert found["mode"] == ("container" if os.getuid() == 0 else "child")


def opened(stash: Path, needed: Collection[Path]) -> str:
    """Shell commands that open paths to everybody, for a process in a mount namespace of its own.

    Where a folder on the way is closed (a home, most often), an empty one takes its place, with only what is needed.
    """
    commands = ["set -e", "umask 022"]
    for number, folder in enumerate({first_closed(path) for path in needed} - {None}):
        aside = stash / str(number)
        commands += [f"mkdir {aside}", f"mount --rbind {folder} {aside}", f"mount -t tmpfs -o mode=755 tmpfs {folder}"]
        for path in needed:
            if path.is_relative_to(folder):
                commands += [f"mkdir -p {path}", f"mount --rbind {aside / path.relative_to(folder)} {path}"]
    return "\n".join(commands)


def first_closed(path: Path) -> Path | None:
    """The first folder on the way to a path that is closed to others."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)


def test_the_guest_works_without_root_as_a_child_of_its_own_user(tmp_path: Path) -> None:
    """A test process that has become nobody runs it all again, without namespaces."""
    program = PROBE.format(path=[str(ROOT), str(ROOT / "sdk_python"), *filter(None, sys.path)], python=None)
    command = [sys.executable, "-c", program]
    if os.getuid() == 0:
        python = Path(sys.executable)
        needed = {ROOT, Path(sys.prefix), Path(sys.base_prefix), python.parent.parent, python.resolve().parent.parent}
        become = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups"
        command = ["unshare", "--mount", "sh", "-c", f'{opened(tmp_path, needed)}\nexec {become} "$@"', "sh", *command]
    env = {name: os.environ[name] for name in ("PATH", "TMPDIR", "MS_ENCLAVE_TEST_RUN") if name in os.environ}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90, cwd="/", env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["mode"] == "child"
    assert found["uid"] == str(NOBODY if os.getuid() == 0 else os.getuid())
