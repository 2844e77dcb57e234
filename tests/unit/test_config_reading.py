"""Files of the operator that are no files, or do not end: they are problems with a text, and nobody waits for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from enclaved.config import ConfigError, load, reading
from enclaved.config.loading import FILE_BYTES_MAX
from enclaved.config.policy_file import read_policy
from enclaved.config.reading import read_file
from enclaved.core.policy import PolicyLimits, built_in_rules
from enclaved.daemon._tls import Unusable, _bytes
from enclaved.tools.registry import ToolRegistry


def settings(path: Path) -> None:
    load(path, environ={}, flags={})


def policy(path: Path) -> None:
    read_policy(path, built_in_rules(PolicyLimits()), tools=ToolRegistry.built_in())


READERS = pytest.mark.parametrize("read", [settings, policy, _bytes], ids=["settings", "policy", "certificate"])


@READERS
def test_a_file_without_end_is_refused(read: Callable[[Path], object]) -> None:
    with pytest.raises((ConfigError, Unusable), match=f"has more than {FILE_BYTES_MAX} bytes"):
        read(Path("/dev/zero"))


@READERS
def test_nobody_waits_for_a_pipe_into_which_nobody_writes(
    read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIPE_S", 0.01)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((ConfigError, Unusable), match="is no regular file, and did not end within"):
        read(tmp_path / "pipe")


def test_what_comes_through_a_pipe_is_read_to_its_end() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"some text")
    os.close(theirs)
    try:
        assert read_file(Path(f"/proc/self/fd/{ours}"), 100) == b"some text"
    finally:
        os.close(ours)


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 200_000)
    assert len(read_file(tmp_path / "file", 99_999)) == 100_000
    assert len(read_file(tmp_path / "file", 200_000)) == 200_000
