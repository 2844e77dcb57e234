"""What the host lays ready for every sandbox."""

from __future__ import annotations

import ast
import base64
import os
import pwd
import stat
import zlib
from pathlib import Path

from enclaved.agent import guest
from enclaved.agent.install import bundled_guest, install_guest, packed_guest, write_accounts


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_guest_lies_where_anybody_can_read_and_nobody_can_write_it(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        path = install_guest(tmp_path / "guest")
    finally:
        os.umask(before)
    assert path.read_bytes() == bundled_guest()
    assert (mode(path), mode(path.parent)) == (0o444, 0o755)
    assert list(path.parent.iterdir()) == [path]


def test_the_packed_guest_fits_into_arguments_that_linux_takes() -> None:
    pieces = packed_guest()
    assert all(len(piece) < 128 * 1024 for piece in pieces)
    assert sum(map(len, pieces)) < 512 * 1024  # of 2 MiB for all
    assert zlib.decompress(base64.b85decode("".join(pieces))) == bundled_guest()


def test_the_installed_guest_is_all_modules_as_they_are_and_the_same_each_time() -> None:
    """So that its name tells what it is, and a person can read it."""
    bundled = bundled_guest()
    assert bundled == bundled_guest()
    head = ast.parse(bundled).body
    quoted = {
        node.targets[0].slice.value: node.value.value
        for node in head
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Subscript)
        and isinstance(node.targets[0].slice, ast.Constant)
        and isinstance(node.value, ast.Constant)
    }
    assert guest.__file__ is not None
    assert quoted == {path.stem: path.read_text() for path in Path(guest.__file__).parent.glob("*.py")}
    assert list(quoted) == sorted(quoted)


def test_a_guest_that_is_there_is_left_alone_and_another_one_lies_beside_it(tmp_path: Path) -> None:
    older = tmp_path / "guest-0000000000000000.py"
    older.write_text("an older daemon's")
    first = install_guest(tmp_path)
    before = first.stat().st_ino
    assert install_guest(tmp_path) == first
    assert first.stat().st_ino == before
    assert older.read_text() == "an older daemon's"


def test_accounts_name_root_nobody_and_the_programs_user(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_accounts(tmp_path / "accounts", 1900000001, "/place")
    finally:
        os.umask(before)
    passwd, group = tmp_path / "accounts" / "passwd", tmp_path / "accounts" / "group"
    lines = [line.split(":") for line in passwd.read_text().splitlines()]
    assert all(len(line) == len(pwd.struct_passwd.__match_args__) for line in lines)
    assert {line[0]: line[2] for line in lines} == {"root": "0", "sandbox": "1900000001", "nobody": "65534"}
    assert lines[1][5] == "/place"
    assert "sandbox:x:1900000001:" in group.read_text().splitlines()
    assert (mode(passwd), mode(group), mode(passwd.parent)) == (0o444, 0o444, 0o755)
