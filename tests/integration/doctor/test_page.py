"""docs/doctor.md: its commands print what it shows, and its tables have what there is."""

from __future__ import annotations

import re

import pytest

from enclaved.doctor.attacks.base import Category, Outcome
from enclaved.doctor.checks.findings import Severity
from tests.docs.pages import ROOT, Block, blocks
from tests.docs.place import a_place

PAGE = (ROOT / "docs" / "doctor.md").read_text()
SHOWN = [block for block in blocks("docs/doctor.md", "shell") if block.shown_output is not None]
CODE = "".join(path.read_text() for path in (ROOT / "enclaved" / "doctor" / "checks").glob("*.py"))


@pytest.mark.parametrize("block", SHOWN, ids=str)
def test_a_command_prints_what_the_page_shows(block: Block) -> None:
    with a_place() as place:
        assert place.run("bash", "-euc", block.text, PYTHONPATH=f"{ROOT}:{ROOT / 'sdk_python'}") == block.shown_output


def test_the_tables_have_every_category_severity_and_outcome() -> None:
    rows = set(re.findall(r"`([a-z ]+)`", "\n".join(re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE))))

    assert {category.value for category in Category} <= rows
    assert {severity.name.lower() for severity in Severity} <= rows
    assert {outcome.value for outcome in Outcome} <= rows


def test_the_table_of_findings_has_every_id() -> None:
    made = set(re.findall(r'"((?:engine|host|config|policy|state|listen|tls|http|sandbox|waive)\.[a-z._-]+)"', CODE))
    listed = set(re.findall(r"`([a-z]+\.[a-z._-]+)`", PAGE))

    families = {"listen.tcp", "listen.http", "listen.metrics", "listen.unix"}
    settings = {"http.api_keys", "engine.url", "engine.pull"}
    assert made - families - settings - listed == set()
