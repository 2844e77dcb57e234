from __future__ import annotations

import subprocess
import sys

LOOK = (
    "import enclaved.cli, enclaved.daemon, sys; print(sorted({'fastapi', 'starlette', 'uvicorn'} & set(sys.modules)))"
)


def test_a_daemon_that_serves_no_http_does_not_load_the_frameworks_for_it() -> None:
    run = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"
