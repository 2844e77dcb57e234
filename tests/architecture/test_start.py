from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("modules", "unneeded"),
    [
        pytest.param("enclaved.cli, enclaved.daemon", {"fastapi", "starlette", "uvicorn"}, id="daemon without HTTP"),
        pytest.param("ms_enclave.sandbox, ms_enclave.sandbox.sync", {"aiohttp", "rich", "click"}, id="SDK"),
        pytest.param("ms_enclave.cli", {"aiohttp", "rich"}, id="command line"),
    ],
)
def test_what_takes_long_to_load_is_loaded_only_by_who_uses_it(modules: str, unneeded: set[str]) -> None:
    look = f"import {modules}, sys; print(sorted({unneeded} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"
