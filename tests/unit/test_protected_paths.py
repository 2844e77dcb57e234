"""Which host paths of a daemon's own nobody may mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from enclaved.config import Settings
from enclaved.core.policy import is_protected
from enclaved.daemon import policy_of


def settings(folder: Path) -> Settings:
    (folder / "policy.toml").write_text("")
    return Settings.model_validate(
        {
            "state": {"dir": str(folder / "state")},
            "listen": {"unix": str(folder / "own.sock")},
            "engine": {"url": f"unix://{folder}/engine.sock"},
            "policy": {"file": str(folder / "policy.toml")},
            "sandbox": {"guest_runtime": str(folder / "rt")},
            "tls": {"cert": str(folder / "tls/cert.pem"), "key": str(folder / "tls/key.pem")},
        }
    )


@pytest.mark.parametrize("name", ["state/s", "own.sock", "policy.toml", "rt/bin", "tls/key.pem", "tls", "engine.sock"])
def test_what_would_make_somebody_the_operator_is_mounted_for_nobody(tmp_path: Path, name: str) -> None:
    folder = tmp_path.resolve()
    protected = policy_of(settings(folder)).rules.protected
    assert is_protected(str(folder / name), protected)
    assert is_protected(str(folder), protected)
    assert not is_protected(str(folder / "data"), protected)
