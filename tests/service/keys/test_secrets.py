"""A token that was used is found nowhere but with its owner."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import execution_service_pb2_grpc
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1.system_service_pb2 import GetInfoRequest

from enclaved import log
from enclaved.cli import enclaved
from tests.service.daemons import daemon, python
from tests.service.keys.ground import sandboxes, shown, system, tls_channel, token, with_certificate

KEY = "a key that is planted"


async def test_tokens_and_keys_are_in_no_log_metric_answer_file_or_sandbox(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = with_certificate(folder, listen__http="127.0.0.1:0", http__api_keys=KEY)
    secret = token(settings)
    root, written = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    log.configure("debug", "json", written)
    said: list[str] = []
    try:
        async with daemon(settings) as running, tls_channel(running) as channel:
            metadata = shown(secret)
            stub = sandboxes(channel)
            made = await stub.CreateSandbox(sandbox_pb.CreateSandboxRequest(sandbox_id="box"), metadata=metadata)
            given: Any = channel
            executions: Any = execution_service_pb2_grpc.ExecutionServiceStub(given)
            look = python("import os, pathlib; print(dict(os.environ), pathlib.Path('/proc/1/cmdline').read_bytes())")
            ran = await executions.Run(execution_pb.RunRequest(spec=look), metadata=metadata)
            said += [str(made), str(ran), str(await system(channel).GetInfo(GetInfoRequest(), metadata=metadata))]
            for wrong in (secret[:-1], secret + "x", KEY):
                with pytest.raises(aio.AioRpcError) as caught:
                    await stub.CreateSandbox(sandbox_pb.CreateSandboxRequest(), metadata=shown(wrong))
                said.append(repr(caught.value))
            with pytest.raises(aio.AioRpcError) as caught:
                await stub.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id="none"), metadata=metadata)
            said.append(repr(caught.value))
            said.append((await running.get("/metrics"))[1])
    finally:
        for handler in root.handlers[:]:
            root.removeHandler(handler)
        for handler in handlers:
            root.addHandler(handler)
        root.setLevel(level)
    monkeypatch.setenv("ENCLAVED_HTTP_API_KEYS", KEY)
    monkeypatch.setenv("ENCLAVED_STATE_DIR", settings.state.dir)
    for arguments in (["config", "show"], ["config", "show", "--json"], ["token", "list", "--json"]):
        said.append(CliRunner().invoke(enclaved, arguments).output)
    said.append(written.getvalue())
    files = [path for path in folder.rglob("*") if path.is_file()]
    planted = (secret[:-1], KEY)
    assert written.getvalue().count("\n") > 10
    assert {json.loads(line)["level"] for line in written.getvalue().splitlines()} >= {"debug", "info", "warning"}
    assert [text[:200] for text in said if any(plant in text for plant in planted)] == []
    assert [path.name for path in files if any(plant.encode() in path.read_bytes() for plant in planted)] == []
