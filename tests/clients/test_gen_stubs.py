"""scripts/gen-stubs: which languages it knows, and what it says about others."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT
from tests.scripts.loading import load

TEMPLATE = """\
version: v2
plugins:
  # one
  - local: protoc-gen-one
    out: one
  - local: protoc-gen-two
    out: two
    opt: [a=b]
  - local: protoc-gen-two-grpc
    out: two
"""


def test_a_language_gets_its_own_plugins_only() -> None:
    only = load("gen-stubs").only
    assert re.findall(r"local: (\S+)", only(TEMPLATE, "one")) == ["protoc-gen-one"]
    assert re.findall(r"local: (\S+)", only(TEMPLATE, "two")) == ["protoc-gen-two", "protoc-gen-two-grpc"]
    assert only(TEMPLATE, "two").startswith("version: v2\nplugins:\n")


def test_every_language_has_a_recipe_and_a_plugin() -> None:
    template = (ROOT / "proto" / "buf.gen.yaml").read_text()
    assert set(re.findall(r"^    out: (\S+)$", template, re.MULTILINE)) == set(load("gen-stubs").LANGUAGES)


def test_an_unknown_language_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load("gen-stubs").main(["cobol"])
    assert stopped.value.code == 2
    assert "no recipe for cobol; there are typescript" in capsys.readouterr().err
