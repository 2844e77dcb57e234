"""SECURITY.md and docs/security.md name what there is."""

from __future__ import annotations

import re

from enclaved.doctor.attacks.base import Category
from enclaved.model.protections import PROTECTION_NAMES
from tests.docs.pages import ROOT

PROMISES = (ROOT / "SECURITY.md").read_text()
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_every_promise_names_tests_that_there_are() -> None:
    section = PROMISES.partition("## What we promise")[2].partition("## What we do not promise")[0]
    rows = [
        line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ") and "shown by" not in line
    ]
    assert len(rows) >= 10
    categories = {category.value for category in Category}
    for promise, shown_by in rows:
        paths = re.findall(r"`(tests/[\w/]+)`", shown_by)
        named = categories & set(re.findall(r"[a-z]+", shown_by))
        assert paths or named, promise
        for path in paths:
            assert list((ROOT / path).rglob("test_*.py")), f"{path}, for: {promise}"


def test_every_protection_is_on_the_page_by_its_name() -> None:
    section = PAGE.partition("## What is checked at start")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted(PROTECTION_NAMES)
