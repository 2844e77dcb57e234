"""Guests of a laboratory that differ from the real one: in their bounds, or altogether."""

from __future__ import annotations

import re
from pathlib import Path

from tests.service.guest.laboratory import Laboratory


def _file(lab: Laboratory) -> Path:
    (path,) = (lab.state_dir / "guest").iterdir()
    path.chmod(0o644)
    return path


def tune_guests(lab: Laboratory, **bounds: float) -> None:
    """Gives the guests of sandboxes that come other bounds than the real ones."""
    path = _file(lab)
    source = path.read_text()
    for name, value in bounds.items():
        source, count = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", source, flags=re.MULTILINE)
        assert count == 1, name
    path.write_text(source)


def replace_guests(lab: Laboratory, source: str) -> None:
    """Starts another program instead of the guest in sandboxes that come."""
    _file(lab).write_text(source)
