"""Tables ``[[runtime_classes]]``: what is read of them, and what is said of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from enclaved.cli import enclaved
from enclaved.config import Settings, load
from enclaved.config.errors import ConfigError
from enclaved.config.runtime_classes import RuntimeClassSettings
from enclaved.daemon._reload import CLASSES, is_live
from enclaved.model import Channel, RuntimeClass

GOOD = """
[limits]
cpu_max = 4.0

[[runtime_classes]]
name = "gvisor"
engine_runtime = "runsc"
channel = "attach"
pids_extra = 7

[[runtime_classes]]
name = "kata"
"""


def settings_of(folder: Path, text: str) -> Settings:
    path = folder / "config.toml"
    path.write_text(text)
    return load(path, environ={}).settings


def test_classes_are_read_with_all_that_they_say(tmp_path: Path) -> None:
    found = [each.runtime_class() for each in settings_of(tmp_path, GOOD).runtime_classes]
    assert found == [
        RuntimeClass("gvisor", "runsc", Channel.ATTACH, 7),
        RuntimeClass("kata", "kata", Channel.SOCKET, 4096),
    ]


MISTAKES = {
    'engine_runtime = "x"': "line 13: runtime_classes[2]: name is missing",
    'name = "runc"': "line 14: runtime_classes[2]: name may not be 'runc', which means the engine's own runtime",
    'name = "kata"': "line 14: runtime_classes[2]: name names 'kata' a second time",
    'name = "No Name"': "line 14: runtime_classes[2]: name",
    'name = "b"\nengine_runtime = "../x y"': "line 15: runtime_classes[2]: engine_runtime",
    'name = "b"\nchannel = "auto"': "line 15: runtime_classes[2]: channel must be 'socket' or 'attach'",
    'name = "b"\npids_extra = -1': "line 15: runtime_classes[2]: pids_extra",
    'name = "b"\ncolour = 1': "line 15: runtime_classes[2]: colour is unknown",
}


@pytest.mark.parametrize(("table", "said"), MISTAKES.items())
def test_a_mistake_is_named_with_its_line_and_nothing_is_served(tmp_path: Path, table: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, f"{GOOD}[[runtime_classes]]\n{table}\n")
    assert any(said in problem for problem in caught.value.problems), caught.value.problems


def test_more_classes_than_anybody_needs_are_refused(tmp_path: Path) -> None:
    tables = "".join(f'[[runtime_classes]]\nname = "c{number}"\n' for number in range(17))
    with pytest.raises(ConfigError, match="is one too many; at most 16 classes are possible"):
        settings_of(tmp_path, tables)


def test_they_are_shown_as_they_would_be_written(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(GOOD)
    shown = CliRunner().invoke(enclaved, ["config", "show", "--config", str(path)])
    assert shown.exit_code == 0
    assert '[[runtime_classes]]\nname = "gvisor"\nengine_runtime = "runsc"\n' in shown.output


def test_a_change_waits_for_a_restart() -> None:
    assert not is_live(CLASSES)


def test_every_key_is_on_the_page_with_its_default_and_meaning() -> None:
    page = (Path(__file__).parents[2] / "docs" / "runtimes.md").read_text()
    for name, field in RuntimeClassSettings.model_fields.items():
        default = "" if field.is_required() else f"`{str(field.default)!r}`".replace("'", '"')
        shown = default if isinstance(field.default, str) else f"`{field.default}`"
        assert f"| `{name}` | {'' if field.is_required() else shown + ' '}| {field.description} |" in page
