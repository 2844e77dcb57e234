"""Folders with wheels of this checkout and of all that it needs, as --wheels of scripts/install-service wants."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = "3.11"
"""The Python of the machine that the tests start."""
PARTS = ("enclaved", "sdk_python", "pyproject.toml", "README.md", "LICENSE")


def needed() -> Path:
    """The wheels that ours needs, downloaded once for each set of requirements."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    key = hashlib.sha256(json.dumps([requirements, PYTHON]).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ms-enclave"
    target = cache / f"wheels-{key}"
    if not target.exists():
        partial = cache / f"wheels-{key}.{os.getpid()}"
        pip("download", "--only-binary=:all:", f"--python-version={PYTHON}", "--dest", str(partial), *requirements)
        for old in cache.glob("wheels-????????????????"):
            shutil.rmtree(old)
        partial.rename(target)
    return target


def folder(target: Path, version: str) -> Path:
    """Makes a folder with all wheels; ours has this version."""
    source = target / "source"
    source.mkdir(parents=True)
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / part, source / part)
    names = source / "sdk_python" / "ms_enclave" / "__init__.py"
    names.write_text(re.sub(r'__version__ = "[^"]+"', f'__version__ = "{version}"', names.read_text()))
    pip("wheel", "--no-deps", "--wheel-dir", str(target), str(source))
    shutil.rmtree(source)
    for wheel in needed().iterdir():
        shutil.copyfile(wheel, target / wheel.name)
    return target


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
