"""docs/configuration.md and the sample file say what the code does."""

import re
import tomllib
from pathlib import Path
from typing import Any

from enclaved.config import SETTINGS, Settings, load

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text()
SAMPLE = ROOT / "systemd" / "enclaved.toml"
FOR_A_SERVICE = {"daemon.keep_sandboxes_on_stop": True}
ROW = re.compile(r"^\| `(\w+\.\w+)` \| `(.*)` \| (.*) \|$", re.MULTILINE)


def flattened(tables: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, table in tables.items() for name, value in table.items()}


def test_every_setting_is_documented_with_its_default_and_meaning():
    documented = {key: (tomllib.loads(f"value = {default}")["value"], text) for key, default, text in ROW.findall(PAGE)}
    assert documented == {s.key: (Settings().value(s.key), s.description) for s in SETTINGS}


def test_the_sample_shows_every_setting_with_its_default():
    shown = re.sub(r"^#(\w+ = )", r"\1", SAMPLE.read_text(), flags=re.MULTILINE)
    assert flattened(tomllib.loads(shown)) == {s.key: Settings().value(s.key) for s in SETTINGS} | FOR_A_SERVICE


def test_the_sample_as_it_is_changes_only_what_is_right_for_a_service():
    found = load(SAMPLE, environ={})
    changed = {s.key: found.settings.value(s.key) for s in SETTINGS if found.origins[s.key] != "default"}
    assert changed == FOR_A_SERVICE
