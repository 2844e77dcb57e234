"""docs/monitoring/dashboard.json: every panel asks for what the daemon exports."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring.exported import ADDED_LABELS, series, unknown

DASHBOARD = json.loads((Path(__file__).parents[2] / "docs" / "monitoring" / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_panel_asks_for_series_and_labels_that_exist(expression: str):
    assert unknown(expression) == []


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_panel_groups_by_labels_that_exist(expression: str):
    grouped = {label for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(", ")}
    (labels,) = {series()[name] for name in series() if re.search(rf"\b{name}\b", expression)}
    assert grouped <= labels | ADDED_LABELS


def test_a_legend_names_labels_that_its_expression_keeps():
    for panel in PANELS:
        for target in panel["targets"]:
            kept = {label for labels in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in labels.split(", ")}
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert shown <= (kept or ADDED_LABELS), panel["title"]


def test_every_metric_of_ours_is_on_the_dashboard():
    text = " ".join([*EXPRESSIONS, json.dumps(DASHBOARD["templating"])])
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in series() if name.startswith(("enclaved_", "grpc_"))}
    assert [name for name in sorted(ours) if name not in text] == []


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
