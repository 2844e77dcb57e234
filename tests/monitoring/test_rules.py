"""docs/monitoring/alerts.yml: valid, about series that exist, and each alert fires when it should."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.monitoring.exported import unknown

FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"
RULES = (FOLDER / "alerts.yml").read_text()
BLOCKS = {block.partition("\n")[0]: block for block in RULES.split("- alert: ")[1:]}


def promtool(programs: Path, *arguments: str) -> str:
    """Runs promtool beside the rules; returns what it wrote."""
    done = subprocess.run(
        [programs / "promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_understands_the_rules_and_the_sample(programs: Path):
    assert f"SUCCESS: {len(BLOCKS)} rules found" in promtool(programs, "check", "rules", "alerts.yml")
    assert "SUCCESS" in promtool(programs, "check", "config", "prometheus.yml")


def test_the_unit_tests_of_the_rules_pass(programs: Path):
    assert "SUCCESS" in promtool(programs, "test", "rules", "alerts_test.yml")


@pytest.mark.parametrize("alert", BLOCKS)
def test_an_alert_asks_for_series_that_exist(alert: str):
    assert unknown(BLOCKS[alert].partition("annotations:")[0]) == []


@pytest.mark.parametrize("alert", BLOCKS)
def test_an_alert_is_shown_to_fire_and_to_keep_quiet(alert: str):
    tests = (FOLDER / "alerts_test.yml").read_text()
    assert re.search(rf"alertname: {alert}\n        exp_alerts:", tests)
    assert re.search(rf"alertname: {alert}}}\n", tests)


@pytest.mark.parametrize("changed", [("== 0\n        for: 1m", "== 7\n        for: 1m"), ("> 0.05", "> 0.5")])
def test_a_rule_that_does_not_fire_is_found(programs: Path, tmp_path: Path, changed: tuple[str, str]):
    assert changed[0] in RULES
    (tmp_path / "alerts.yml").write_text(RULES.replace(*changed))
    (tmp_path / "alerts_test.yml").write_text((FOLDER / "alerts_test.yml").read_text())
    command = [programs / "promtool", "test", "rules", "alerts_test.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert done.returncode == 1
