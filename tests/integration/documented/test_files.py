"""Files in and out of a sandbox: ``put_file``, ``put_dir``, ``put_archive``, ``read_file``."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from ms_enclave.errors import InvalidRequest, NoSpace, PathNotFound, PathUnusable
from ms_enclave.sandbox.boxes import Sandbox

MIB = 1024 * 1024


def archive(*members: tuple[str, bytes], mode: str = "w", change: Callable[[tarfile.TarInfo], None] | None = None):
    """Makes a tar archive; ``change`` may turn each member into something else."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change is not None:
                change(info)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return buffer.getvalue()


async def run(sandbox: Sandbox, command: str) -> str:
    result = await sandbox.execute_command(command)
    assert result.success, result.stderr
    return result.stdout or ""


async def test_a_file_is_written_with_the_directories_above_it(sandbox: Sandbox):
    await sandbox.put_file("in/deep/text.txt", "Grüße\n")
    assert await run(sandbox, "cat in/deep/text.txt") == "Grüße\n"
    assert await sandbox.read_file("in/deep/text.txt") == "Grüße\n".encode()


async def test_a_file_is_written_in_the_encoding_that_the_caller_names(sandbox: Sandbox):
    await sandbox.put_file("latin.txt", "Grüße", encoding="latin-1")
    assert await sandbox.read_file("latin.txt") == b"Gr\xfc\xdfe"
    with pytest.raises(InvalidRequest, match="cannot be written as 'ascii'"):
        await sandbox.put_file("ascii.txt", "Grüße", encoding="ascii")


async def test_many_megabytes_arrive_unchanged(sandbox: Sandbox):
    data = os.urandom(10 * MIB)
    await sandbox.put_file("large.bin", data)
    assert await sandbox.read_file("large.bin") == data
    await run(sandbox, "rm large.bin")


async def test_temporary_files_have_a_place_of_their_own(sandbox: Sandbox):
    await sandbox.put_file("/tmp/note", "here")
    assert await run(sandbox, "cat /tmp/note") == "here"


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "/proc/self/environ", "/run/enclave/guest.py"])
async def test_nothing_outside_can_be_read_or_written(sandbox: Sandbox, path: str):
    with pytest.raises((PathUnusable, InvalidRequest), match="outside the sandbox's directories"):
        await sandbox.read_file(path)
    with pytest.raises((PathUnusable, InvalidRequest), match="outside the sandbox's directories"):
        await sandbox.put_file(path, "x")


async def test_a_link_to_the_outside_leads_nowhere(sandbox: Sandbox):
    await run(sandbox, "ln -s /etc/passwd planted && ln -s / root")
    for path in ("planted", "root/etc/passwd"):
        with pytest.raises((PathUnusable, InvalidRequest)):
            await sandbox.read_file(path)


async def test_what_is_no_file_is_refused_instead_of_waited_for(sandbox: Sandbox):
    await run(sandbox, "mkfifo pipe; mkdir -p folder")
    for path in ("pipe", "folder"):
        with pytest.raises(PathUnusable):
            await sandbox.read_file(path)


async def test_a_file_that_does_not_exist(sandbox: Sandbox):
    with pytest.raises(FileNotFoundError, match="missing") as caught:
        await sandbox.read_file("missing")
    assert isinstance(caught.value, PathNotFound)


async def test_a_full_disk_is_an_error_and_leaves_no_part_of_the_file(sandbox: Sandbox):
    with pytest.raises(NoSpace):
        await sandbox.put_file("too-large.bin", b"\0" * (100 * MIB))
    assert await run(sandbox, "ls too-large.bin 2>/dev/null; echo still works > small && cat small") == "still works\n"


async def test_a_directory_is_copied_with_its_modes(sandbox: Sandbox, tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "data.txt").write_text("data")
    (tmp_path / "link.txt").symlink_to("sub/data.txt")
    (tmp_path / "run.sh").write_text("#!/bin/sh\ncat sub/data.txt link.txt\n")
    (tmp_path / "run.sh").chmod(0o755)
    await sandbox.put_dir(tmp_path, "project")
    assert await run(sandbox, "cd project && ./run.sh") == "datadata"


async def test_a_directory_that_links_to_the_outside_is_refused_before_anything_is_copied(
    sandbox: Sandbox, tmp_path: Path
):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "z").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="leads out of"):
        await sandbox.put_dir(tmp_path, "leaky")
    with pytest.raises(ValueError, match="is no directory"):
        await sandbox.put_dir(tmp_path / "a.txt", "leaky")
    assert await run(sandbox, "ls leaky 2>/dev/null || echo nothing") == "nothing\n"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
async def test_an_archive_is_unpacked(sandbox: Sandbox, mode: str):
    target = f"unpacked-{mode[2:]}"
    await sandbox.put_archive(target, archive(("a.txt", b"a"), ("b/c.txt", b"c"), mode=mode))
    assert await run(sandbox, f"cd {target} && cat a.txt b/c.txt") == "ac"


@pytest.mark.parametrize(
    ("hostile", "why"),
    [
        (b"", "must not be empty"),
        (b"no archive at all", "cannot be read"),
        (archive(("../escape", b"x")), "escape"),
        (archive(("/absolute/../../x", b"x")), "absolute"),
        (archive(("device", b""), change=lambda info: setattr(info, "type", tarfile.CHRTYPE)), "device"),
    ],
    ids=["empty", "malformed", "leads out", "leads out from the root", "device"],
)
async def test_a_hostile_archive_is_a_value_error_and_nothing_is_written(sandbox: Sandbox, hostile: bytes, why: str):
    with pytest.raises(ValueError, match=why):
        await sandbox.put_archive("hostile", hostile)
    assert await run(sandbox, "ls hostile 2>/dev/null || echo nothing") == "nothing\n"


async def test_a_link_in_an_archive_that_leads_out_is_refused(sandbox: Sandbox):
    def link(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0

    with pytest.raises(ValueError, match="link"):
        await sandbox.put_archive("hostile", archive(("link", b""), change=link))
