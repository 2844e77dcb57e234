"""Loads the programs in scripts/, whose names are no module names."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def load(name: str) -> ModuleType:
    """Returns a script as a module; ``_console`` and its like are imported by it as when it runs as a program."""
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    module_name = name.replace("-", "_")
    if module_name not in sys.modules:
        path = SCRIPTS / name if (SCRIPTS / name).exists() else SCRIPTS / f"{name}.py"
        loader = SourceFileLoader(module_name, str(path))
        spec = importlib.util.spec_from_loader(module_name, loader)
        assert spec is not None
        sys.modules[module_name] = importlib.util.module_from_spec(spec)
        loader.exec_module(sys.modules[module_name])
    return sys.modules[module_name]
