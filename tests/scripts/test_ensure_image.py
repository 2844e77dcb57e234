"""Where ensure-image looks for the default image, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scripts.loading import load

ensure_image = load("ensure-image")
engine_module = load("_engine")


class Engine:
    def __init__(self) -> None:
        self.names: set[str] = set()
        self.registry: set[str] = set()
        self.done: list[str] = []

    def image(self, name: str) -> dict[str, Any] | None:
        return {} if name in self.names else None

    def pull(self, name: str, *, heard: Any, first_answer_s: float, silence_s: float) -> None:
        self.done.append(f"pull {name}")
        heard(engine_module.PullState("Downloading", 1, 2))
        if name not in self.registry:
            raise engine_module.EngineError("no such host")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    fake = Engine()
    monkeypatch.setattr(ensure_image.Engine, "from_environment", lambda: fake)
    monkeypatch.setattr(ensure_image, "build", lambda: fake.done.append("build"))
    return fake


@pytest.mark.parametrize("name", ["python:3.11-slim", "ms-enclave/python:3.11"])
def test_an_image_that_is_there_is_used_silently(engine: Engine, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    engine.names = {name}
    assert ensure_image.main([]) == 0
    assert engine.done == []
    assert capsys.readouterr() == ("", "")


def test_a_missing_image_is_pulled(engine: Engine) -> None:
    engine.registry = {"python:3.11-slim"}
    assert ensure_image.main([]) == 0
    assert engine.done == ["pull python:3.11-slim"]


def test_an_image_that_no_registry_gives_is_built_and_the_user_learns_why(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ensure_image.main([]) == 0
    assert engine.done == ["pull python:3.11-slim", "build"]
    assert "no registry gives python:3.11-slim (no such host)" in capsys.readouterr().err


def test_the_tests_image_is_built_and_never_pulled(engine: Engine) -> None:
    engine.names = engine.registry = {"python:3.11-slim"}
    assert ensure_image.main(["--built"]) == 0
    assert engine.done == ["build"]
