"""docs/tools.md lists every built-in tool with its parameters and options."""

from __future__ import annotations

import re

import pytest

from enclaved.tools.registry import ToolRegistry
from tests.docs.pages import ROOT

ROWS = [
    line.strip("|").split("|") for line in (ROOT / "docs" / "tools.md").read_text().splitlines() if line[:3] == "| `"
]
REGISTRY = ToolRegistry.built_in()


@pytest.mark.parametrize("tool", REGISTRY.names())
def test_every_parameter_and_option_of_a_tool_is_on_the_page(tool: str) -> None:
    parameters = [row[1] for row in ROWS if len(row) == 3 and row[0].strip().startswith(f"`{tool}`")]
    assert set(REGISTRY.get(tool).Params.model_fields) <= set(re.findall(r"`(\w+)`", " ".join(parameters)))
    options = {row[1].strip(" `") for row in ROWS if len(row) == 4 and f"`{tool}`" in row[0]}
    assert {*options, "timeout"} == set(REGISTRY.option_names(tool))
