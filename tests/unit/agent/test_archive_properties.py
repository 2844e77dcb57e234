"""Archives and paths of any kind: what is inside comes back, and nothing leads out. More of them in a full run."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from enclaved.agent.guest.packing import pack
from enclaved.agent.guest.paths import PathRefused, find
from tests.unit.agent.archives import check_outside, closing, directory, member, packed, unpack

NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "c\n", "l", "\udcff"]), min_size=1, max_size=5)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
ENTRIES = st.tuples(NAMES.map("/".join), KINDS, NAMES.map("/".join), st.binary(max_size=700))


pytestmark = pytest.mark.timeout(900)
"""A full run takes longer than one test may otherwise."""

MANY = settings(max_examples=6 * settings().max_examples)
"""300 here, 12 000 in a full run."""


@MANY
@given(st.lists(ENTRIES, max_size=8), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_no_archive_leads_out(entries: list[tuple[str, bytes, str, bytes]], form: int) -> None:
    members = []
    for name, kind, link, content in entries:
        info = member(name, content if kind == tarfile.REGTYPE else b"", kind=kind, link=link)
        members.append((info, content))
    with directory() as folder:
        try:
            unpack(packed(*members, form=form), folder)
        except OSError as error:
            event(type(error).__name__)
        check_outside(folder)


@MANY
@given(st.data())
def test_a_damaged_archive_is_refused_or_stays_inside(data: st.DataObject) -> None:
    whole = packed((member("a/b", b"1" * 600), b"1" * 600), (member("c" * 120, b"2"), b"2"))
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 6)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with directory() as folder:
        with suppress(OSError):
            unpack(bytes(damaged), folder)
        check_outside(folder)


LIES = st.dictionaries(
    st.sampled_from(["path", "linkpath", "size", "mtime", "GNU.sparse.size", "hdrcharset", "uid", "comment"]),
    st.sampled_from(
        ["", "..", "/etc/x", "../outside", "a/b", "-1", "0", "1e9", "99999999999999999999", "\u0661", "1.5"]
    )
    | st.integers(-(2**70), 2**70).map(str),
    max_size=4,
)


@MANY
@given(st.lists(st.tuples(ENTRIES, LIES), max_size=4), st.integers(0, 2000))
def test_no_extended_header_lies_its_way_out(entries: list[tuple[Any, dict[str, str]]], cut: int) -> None:
    archive = b""
    for (name, kind, link, content), lies in entries:
        info = member(name, content if kind == tarfile.REGTYPE else b"", kind=kind, link=link)
        info.pax_headers = dict(lies)
        archive += packed((info, content))[: None if cut % 3 else 512 * (cut % 9)]  # concatenated, some of them cut
    with directory() as folder:
        with suppress(OSError):
            unpack(archive, folder)
        check_outside(folder)


@MANY
@given(st.sampled_from([b"", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", bytes(512)]), st.binary(max_size=3000))
def test_any_bytes_are_refused_or_stay_inside(head: bytes, data: bytes) -> None:
    with directory() as folder:
        with suppress(OSError):
            unpack(head + data, folder)
        check_outside(folder)


INNER = st.binary(min_size=1, max_size=20).filter(lambda name: not {b"/"[0], 0} & {*name} and name not in (b".", b".."))
TREES = st.recursive(
    st.binary(max_size=2000) | st.integers(0, 3),
    lambda inner: st.dictionaries(INNER | st.just(b"n" * 200), inner, max_size=4),
    max_leaves=12,
)
Tree = bytes | int | dict[bytes, Any]


def plant(path: bytes, tree: Tree, top: bytes) -> None:
    """Makes a tree: bytes are files, numbers are links to something in the tree that need not be there."""
    if isinstance(tree, dict):
        os.mkdir(path)
        for name, inner in tree.items():
            plant(os.path.join(path, name), inner, top)
    elif isinstance(tree, int):
        depth = path[len(top) :].count(b"/") - 1
        os.symlink(b"/".join([b".."] * min(tree, depth) + [b"x"]), path)
    else:
        Path(os.fsdecode(path)).write_bytes(tree)


def grown(path: bytes) -> Tree:
    """What lies there, as `plant` takes it, but for links, which are what they lead to."""
    if os.path.islink(path):
        return b"-> " + os.readlink(path)
    if os.path.isdir(path):
        return {name: grown(os.path.join(path, name)) for name in os.listdir(path)}
    return Path(os.fsdecode(path)).read_bytes()


@settings(max_examples=2 * settings().max_examples)
@given(st.dictionaries(INNER, TREES, max_size=4), st.booleans())
def test_any_tree_comes_back_as_it_went(tree: dict[bytes, Any], packed_small: bool) -> None:
    with directory() as folder:
        source = os.fsencode(folder / "source")
        plant(source, tree, source)
        output = io.BytesIO()
        pack(find("source", str(folder)), output, packed_small)
        unpack(output.getvalue(), folder)
        assert grown(os.fsencode(folder / "target")) == grown(source)


@MANY
@given(
    st.lists(st.tuples(NAMES.map("/".join), NAMES.map("/".join)), max_size=5),
    NAMES.map("/".join),
    st.booleans(),
)
def test_no_path_leads_out(links: list[tuple[str, str]], path: str, follow: bool) -> None:
    """With /tmp itself allowed, the directories lie in another file system."""
    with closing(), tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        top = os.path.join(os.path.realpath(folder), *"xxxxxx")  # so deep that no name here leads out of the folder
        os.makedirs(os.path.join(top, "a/b"))
        for name, target in links:
            try:
                os.symlink(target or ".", os.path.join(top, name))
            except (OSError, ValueError):
                continue
        try:
            place = find(path or ".", top, follow)
        except (PathRefused, NotADirectoryError):
            return
        assert place.path == top or place.path.startswith((f"{top}/", "/tmp/"))
        opened = os.path.realpath(f"/proc/self/fd/{place.folder}")
        assert "/".join([opened, *place.missing, place.name]) == place.path or place.path == top
