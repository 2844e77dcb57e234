"""docs/limits.md has the numbers of the code."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from enclaved.config import SETTINGS, Settings

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
ROWS = re.findall(r"^\| ([^|]+) \| ([0-9]+) \| `([\w.]+)` \|", PAGE, re.MULTILINE)


def value_of(name: str) -> Any:
    """The default of a setting, or a constant of the code."""
    if name in {setting.key for setting in SETTINGS}:
        return Settings().value(name)
    module, _, constant = name.rpartition(".")
    return getattr(importlib.import_module(f"enclaved.{module}"), constant)


@pytest.mark.parametrize(("what", "number", "name"), ROWS, ids=[row[2] for row in ROWS])
def test_a_bound_that_is_documented_is_that_of_the_code(what: str, number: str, name: str):
    assert value_of(name) == float(number), what


def test_every_row_of_the_page_is_compared():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| what |")]
    assert len(rows) == len(ROWS) > 50
