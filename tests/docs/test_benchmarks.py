"""The benchmark runs, checks its answers and prints ratios; the figures themselves are nobody's promise."""

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
