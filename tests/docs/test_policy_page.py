"""docs/policy.md: its example is a policy, its commands run, and its table has every rule."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pytest

from enclaved.cli import main
from enclaved.config import read_policy
from enclaved.config.policy_tables import RoleTable
from enclaved.core.policy import PolicyLimits, built_in_rules
from enclaved.core.policy.mounts import NEVER
from enclaved.model import IdentityKind
from enclaved.tools.registry import ToolRegistry
from tests.docs.pages import ROOT, blocks

PAGE = "docs/policy.md"
ROW = re.compile(r"^\| `(\w+)` \| (.*) \|$", re.MULTILINE)


@pytest.fixture
def policy_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (example,) = blocks(PAGE, "toml")
    file = tmp_path / "policy.toml"
    file.write_text(example.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENCLAVED_CONFIG", "/dev/null")
    return file


def test_every_rule_is_documented_with_its_meaning() -> None:
    rows = dict(ROW.findall((ROOT / PAGE).read_text().partition("| rule | meaning |")[2]))
    assert rows == {name: field.description for name, field in RoleTable.model_fields.items()}


def test_the_example_is_a_policy_that_does_what_it_says(policy_file: Path) -> None:
    rules = read_policy(policy_file, built_in_rules(PolicyLimits()), tools=ToolRegistry.built_in())
    assert list(rules.roles) == ["default", "ci", "students", "embedded", "monitor"]
    assert rules.roles["ci"].users == ("token:ci-*",)
    assert rules.roles["ci"].limits.sandboxes_max == 20
    assert rules.roles["students"].networks == ("none",)


def test_what_no_policy_can_grant_is_named() -> None:
    page = (ROOT / PAGE).read_text()
    for path in NEVER:
        parent = "/var/lib" if path.startswith("/var/lib") else path.removeprefix("/var")
        assert f"`{parent}`" in page


def test_the_commands_run_and_print_what_is_shown(
    policy_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = blocks(PAGE, "bash")
    for line in block.text.splitlines():
        words, _, piped = line.rpartition(" | ")[2], "", line.partition(" | ")[0]
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(shlex.split(piped)[-1].encode())))
        with pytest.raises(SystemExit) as caught:
            main(shlex.split(words)[1:])
        assert caught.value.code == 0
    (shown,) = blocks(PAGE, "text")
    assert shown.text in capsys.readouterr().out


def test_every_kind_of_caller_is_named() -> None:
    page = (ROOT / PAGE).read_text()
    assert all(f"`{kind.value}" in page for kind in IdentityKind)
