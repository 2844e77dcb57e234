"""``ms-enclave server``."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import free_port
from tests.integration.cli.conftest import Command
from tests.integration.failures.ground import PATIENCE_S, Ground

CONFIG = {"memory_limit": "128m", "tools_config": {"python_executor": {}}}


def call(port: int, path: str, *, body: Any = None, **headers: str) -> Any:
    """Asks the server; JSON in and out."""
    data = None if body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, sent)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return json.load(answer)


def started(process: subprocess.Popen[bytes], port: int) -> None:
    """Waits until it says that it serves."""
    assert process.stderr is not None
    assert process.stderr.readline().startswith(f"ms-enclave serves http://127.0.0.1:{port} ".encode())


def test_it_serves_the_documented_routes_and_removes_everything_at_its_end(ground: Ground) -> None:
    port = free_port()
    with Command(ground.environment()).start("server", "--port", str(port)) as process:
        started(process, port)
        assert call(port, "/health")["healthy"] is True
        made = call(port, "/sandbox/create?sandbox_type=docker", body=CONFIG)
        run = {**made, "tool_name": "python_executor", "parameters": {"code": "print(42)"}}
        assert call(port, "/sandbox/tool/execute", body=run)["output"] == "42\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE_S) == (b"", b"")
    assert process.returncode == 0
    assert ground.containers() == []


def test_a_key_from_a_file_is_needed_by_every_request(ground: Ground, tmp_path: Path) -> None:
    port, key = free_port(), tmp_path / "key"
    key.write_text("a-key-of-some-length\n")
    options = ("--port", str(port), "--api-key-file", str(key))
    with Command(ground.environment()).start("server", *options) as process:
        started(process, port)
        assert call(port, "/sandboxes", X_API_Key="a-key-of-some-length") == []
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            call(port, "/sandboxes")
        refused.value.close()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)


def test_an_address_for_others_needs_a_key(ground: Ground) -> None:
    done = Command(ground.environment()).run("server", "--host", "0.0.0.0", "--port", str(free_port()))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"key" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"ms-enclave: ")
