"""The commands for files, at a real daemon whose sandboxes are processes of this machine."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ms_enclave import cli
from ms_enclave._cli.copying import End
from ms_enclave._cli.file_commands import printable

from tests.service.daemons import daemon, settings_in, short_directory
from tests.service.test_cli_executions import PATIENCE_S, Command


@pytest.fixture
async def command() -> AsyncIterator[Command]:
    async with short_directory() as folder, daemon(settings_in(folder)) as running:
        for name in ("box", "two"):
            await running.create(name)
        yield Command(f"unix:{running.settings.listen.unix}")


async def well(command: Command, *arguments: str, stdin: bytes | None = None) -> str:
    """Runs a command that must do what it should and say nothing on standard error; returns what it printed.

    In this process, which takes less time than another one, unless it reads standard input.
    """
    if stdin is not None or "-" in arguments:
        done = await command.run(*arguments, stdin=stdin or b"")
        assert (done.code, done.err) == (0, ""), done
        return done.out
    call = [*arguments, "--address", command.address]
    result = await asyncio.to_thread(CliRunner().invoke, cli.ms_enclave, call, catch_exceptions=False)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


async def as_json(command: Command, *arguments: str, stdin: bytes | None = None) -> Any:
    return json.loads(await well(command, *arguments, "--json", stdin=stdin))


async def test_a_file_goes_in_and_out_and_from_sandbox_to_sandbox(command: Command, tmp_path: Path) -> None:
    data = bytes(range(256)) * 3000
    (tmp_path / "up").write_bytes(data)
    (tmp_path / "up").chmod(0o755)
    assert await well(command, "cp", f"{tmp_path}/up", "box:") == ""
    assert await well(command, "cp", f"{tmp_path}/up", "box:new/dir/") == ""
    copied = await as_json(command, "cp", "box:new/dir/up", "two:there")
    assert (copied["files"], copied["size_bytes"]) == (1, len(data))
    copied = await as_json(command, "cp", "two:there", f"{tmp_path}/down")
    assert copied == {"source": "two:there", "target": f"{tmp_path}/down", "files": 1, "size_bytes": len(data)}
    assert (tmp_path / "down").read_bytes() == data
    assert (tmp_path / "down").stat().st_mode & 0o777 == 0o755
    (tmp_path / "into").mkdir()
    await well(command, "cp", "box:up", f"{tmp_path}/into")
    assert (tmp_path / "into" / "up").read_bytes() == data


async def test_a_directory_moves_only_what_changed(command: Command, tmp_path: Path) -> None:
    (tmp_path / "src" / "sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        (tmp_path / "src" / name).write_text(name)
    assert (await as_json(command, "cp", f"{tmp_path}/src", "box:src"))["files"] == 2
    (tmp_path / "src" / "a").write_text("changed")
    assert (await as_json(command, "cp", f"{tmp_path}/src/.", "box:src"))["files"] == 1
    assert (await as_json(command, "cp", "box:src", "two:src"))["files"] == 3
    assert (await as_json(command, "cp", "two:src", f"{tmp_path}/back"))["files"] == 2
    assert (tmp_path / "back" / "a").read_text() == "changed"
    assert (tmp_path / "back" / "sub" / "b").read_text() == "sub/b"


async def test_what_is_copied_out_has_the_name_that_its_user_wrote_and_never_that_of_what_a_link_leads_to(
    command: Command, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / ".profile").write_text("mine")
    made = "mkdir -p real/.ssh; echo theirs > real/.ssh/keys; echo theirs > .profile; ln -s .profile result; "
    made += "ln -s real/.ssh out; ln -s result chain"
    assert (await command.run("exec", "box", "--", "sh", "-c", made)).code == 0
    for source in ("result", "out", "out/.", "./result", "out/"):
        await well(command, "cp", f"box:{source}", f"{here}/")
    assert sorted(path.name for path in here.iterdir()) == [".profile", "keys", "out", "result"]
    assert (here / ".profile").read_text() == "mine"
    assert (here / "result").read_text() == "theirs\n"
    await well(command, "cp", "box:out", "two:.")
    assert [row["path"].rpartition("/")[2] for row in await as_json(command, "files", "ls", "two")] == ["out"]


async def test_no_more_comes_out_of_a_directory_than_its_user_allows(command: Command, tmp_path: Path) -> None:
    made = "mkdir d; truncate -s 1M d/1; for n in 2 3 4 5; do ln d/1 d/$n; done"
    assert (await command.run("exec", "box", "--", "sh", "-c", made)).code == 0
    refused = await command.run("cp", "box:d", f"{tmp_path}/d", "--max-size", "4m")
    assert refused.code == 1
    assert "more than 4194304 bytes" in refused.err
    assert list((tmp_path / "d").iterdir()) == []
    assert (await as_json(command, "cp", "box:d", f"{tmp_path}/d", "--max-size", "5m"))["files"] == 5


async def test_standard_streams_are_files_or_archives(command: Command) -> None:
    await well(command, "cp", "-", "box:notes/f", stdin=b"from stdin")
    assert await well(command, "cp", "box:notes/f", "-") == "from stdin"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    assert (await as_json(command, "cp", "-", "box:notes", "--tar", stdin=buffer.getvalue()))["files"] == 1
    process = await command.start("cp", "box:notes", "-", "--tar")
    out, _ = await process.communicate()
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert archive.getnames() == ["empty", "f"]


async def test_progress_is_shown_on_a_terminal_only(command: Command, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(3_000_000))
    assert (await command.run("cp", f"{tmp_path}/f", "box:")).err == ""
    mine, theirs = pty.openpty()
    process = await command.start("cp", f"{tmp_path}/f", "box:", stderr=theirs)
    os.close(theirs)
    async with asyncio.timeout(PATIENCE_S):
        assert await process.wait() == 0
    assert b"3.0" in os.read(mine, 65536)
    os.close(mine)


async def test_files_are_looked_at_and_changed(command: Command) -> None:
    await well(command, "files", "mkdir", "-p", "box", "a/b", "-m", "700")
    await well(command, "cp", "-", "box:a/b/f.txt", stdin=b"one\nTWO\n")
    listed = await as_json(command, "files", "ls", "box", "a", "-R")
    assert [Path(info["path"]).name for info in listed] == ["b", "f.txt"]
    assert [(info["type"], info["mode"]) for info in listed] == [("directory", "0700"), ("file", "0644")]
    assert "f.txt" in await well(command, "files", "ls", "box", "a/b")
    assert (await as_json(command, "files", "stat", "box", "a/b/f.txt"))["size_bytes"] == 8
    assert "-0644" in await well(command, "files", "stat", "box", "a/b/f.txt")
    assert (await well(command, "files", "find", "box", "**/*.txt")).strip().endswith("/a/b/f.txt")
    found = await as_json(command, "files", "find", "box", "**", "a", "--text", "two", "-i")
    assert [(match["line"], match["text"]) for match in found["matches"]] == [(2, "TWO")]
    assert (await well(command, "files", "find", "box", "**", "--text", "T.O")).endswith("f.txt:2:TWO\n")
    await well(command, "files", "mv", "box", "a/b/f.txt", "g")
    done = await command.run("files", "rm", "box", "a")
    assert done.code == 1
    assert "not empty" in done.err.lower()
    await well(command, "files", "rm", "-r", "box", "a", "g")
    await well(command, "files", "rm", "-f", "box", "a")
    assert await as_json(command, "files", "ls", "box") == []


async def test_changes_are_told_until_ctrl_c(command: Command) -> None:
    process = await command.start("files", "watch", "box", "-R", "--json")
    assert process.stderr is not None
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        assert await process.stderr.readline() == b"watching .\n"
        await well(command, "files", "mkdir", "box", "d")
        change = json.loads(await process.stdout.readline())
        assert (change["change"], change["is_directory"]) == ("created", True)
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("cp", "a", "b"), 2, "name a sandbox"),
        (("cp", "box:x", "-", "--json"), 2, "standard output"),
        (("cp", "box:x", "y", "--max-size", "much"), 2, "--max-size"),
        (("cp", "/missing", "box:"), 1, "No such file"),
        (("cp", "box:missing", "/tmp"), 1, "missing"),
        (("cp", "box:/etc/passwd", "-"), 1, "outside"),
        (("files", "mkdir", "box", "d", "-m", "9"), 2, "octal"),
    ],
)
async def test_what_goes_wrong_is_one_line(command: Command, arguments: tuple[str, ...], code: int, why: str) -> None:
    done = await command.run(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done
    assert why in done.err


def test_an_end_is_a_sandbox_or_a_path_of_this_machine() -> None:
    assert End.of("box:a:b") == End("box", "a:b")
    assert End.of("box:") == End("box", ".")
    for text in ("./a:b", "/a:b", ":x", "plain", "-"):
        assert End.of(text) == End("", text)


def test_what_a_stranger_named_controls_no_terminal() -> None:
    assert printable("a\x1b[31m\n\u202eb \xe9") == "a\\x1b[31m\\n\\u202eb \xe9"
