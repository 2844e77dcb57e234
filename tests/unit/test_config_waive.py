"""Who may do without protections, and by which names."""

from __future__ import annotations

import pytest

from enclaved.config import ConfigError, load
from enclaved.config.waive import foreign_waiver


def test_protections_are_waived_by_their_names(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('[waive]\nprotections = ["cpu_limit"]\n')
    assert load(file, environ={}).settings.waive.protections == ["cpu_limit"]


@pytest.mark.parametrize(("name", "hint"), [("cpu_limits", "did you mean 'cpu_limit'"), ("zzzz", "there are profile,")])
def test_a_name_that_is_none_is_refused_with_the_line_and_the_nearest(tmp_path, name, hint):
    file = tmp_path / "config.toml"
    file.write_text(f'[waive]\nprotections = ["{name}"]\n')
    with pytest.raises(ConfigError, match=rf"line 2: waive.protections names '{name}'.*{hint}"):
        load(file, environ={})


@pytest.mark.parametrize(
    "origin", ["environment ENCLAVED_WAIVE_PROTECTIONS", "flag --waive-protections", "file /tmp/x"]
)
def test_whoever_starts_a_daemon_for_itself_cannot_waive_anything(origin):
    assert "counts in /etc/enclaved/config.toml only" in str(
        foreign_waiver(["devices"], origin, "/etc/enclaved/config.toml")
    )
    assert foreign_waiver([], origin, "/etc/enclaved/config.toml") is None


def test_the_operators_file_can():
    name = "/etc/enclaved/config.toml"
    assert foreign_waiver(["devices"], f"file {name}", name) is None
