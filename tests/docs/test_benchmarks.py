"""The benchmarks run, check their answers and print ratios; the figures themselves are nobody's promise."""

from __future__ import annotations

import sys

import pytest

from tests.docs.pages import ROOT
from tests.docs.place import Place

PATHS = ("empty gRPC call", "SDK, persistent context", "SDK, fresh interpreter", "aiodocker exec", "docker exec CLI")


@pytest.mark.docker
def test_print_one_measures_every_path_in_both_rhythms(place: Place) -> None:
    printed = place.run(sys.executable, ROOT / "benchmarks" / "print_one.py", "--rounds", "1")

    assert "one call after the other" in printed
    assert "one call after 6 ms of idling" in printed
    for path in PATHS:
        assert printed.count(f"| {path} | 5 | ") == 2
    assert "Docker Engine" in printed


@pytest.mark.docker
def test_channels_measures_every_call_over_both_channels(place: Place) -> None:
    printed = place.run(sys.executable, ROOT / "benchmarks" / "channels.py", "--rounds", "1")

    assert "| call | n | socket: median ms | attach: median ms | attach / socket |" in printed
    for call, count in (("persistent context", 5), ("fresh interpreter", 5), ("stream of 8 MiB", 1)):
        assert printed.count(f"| {call} | {count} | ") == 1


@pytest.mark.docker
def test_files_measures_every_path_both_ways_and_what_a_change_costs(place: Place) -> None:
    printed = place.run(sys.executable, ROOT / "benchmarks" / "files.py", "--mib", "4", "--rounds", "1")

    for path in ("docker cp", "SDK", "ms-enclave cp"):
        assert printed.count(f"| {path} | 1 | ") == 2
    assert "| put_dir of all | 1000 | " in printed
    assert "| put_dir, one has changed | 1 | " in printed
    assert "| get_dir, nothing has changed | 0 | " in printed


@pytest.mark.docker
def test_pool_measures_every_path_with_every_number_of_callers(place: Place) -> None:
    printed = place.run(sys.executable, ROOT / "benchmarks" / "pool.py", "--rounds", "1", "--seconds", "0.1")

    for path in ("own sandbox, context", "own sandbox, isolated", "pool", "pool, open context"):
        for callers in (1, 8, 32):
            assert printed.count(f"| {path} | {callers} | ") == 2
    assert printed.count("reset of a member: median") == 2
