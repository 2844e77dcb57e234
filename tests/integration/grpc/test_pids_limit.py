"""A daemon whose policy kills what meets the limit of processes."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.failures.ground import Ground
from tests.integration.grpc.client import Buf

FORKS = "while :; do sleep 60 & done 2>/dev/null"


@pytest.fixture
def strict(default_image: str) -> Iterator[Buf]:
    """A client of a daemon with ``sandbox.kill_at_pids_limit``."""
    ground = Ground()
    try:
        daemon = asyncio.run(ground.daemon("--sandbox-kill-at-pids-limit", "true"))
        program = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
        assert program is not None, "install buf-bin (it is in the dev extra)"
        yield Buf(program, daemon.socket)
        daemon.check_log()
    finally:
        ground.clear()


def test_what_meets_the_limit_of_processes_is_killed_and_the_next_call_works(strict: Buf):
    spec = {"memoryLimitBytes": str(256 * 1024**2), "pidsLimit": 40}
    made = strict.call("ms_enclave.v1.SandboxService/CreateSandbox", {"spec": spec}).message["sandbox"]

    def run(command: str) -> dict[str, object]:
        call = {"sandboxId": made["id"], "tool": "bash", "parametersJson": json.dumps({"command": command})}
        answer = strict.call("ms_enclave.v1.ExecutionService/Run", {"spec": {**call, "timeoutS": 30}})
        finished: dict[str, object] = answer.message["finished"]
        return finished

    assert run("true")["verdict"] == "VERDICT_EXITED"
    killed = run(FORKS)
    assert killed["verdict"] == "VERDICT_PIDS_LIMIT"
    limits = killed["limitsHit"]
    assert isinstance(limits, list)
    (hit,) = [hit for hit in limits if hit["limit"] == "pids"]
    assert int(hit["maximum"]) == 40
    assert run("true")["verdict"] == "VERDICT_EXITED"
