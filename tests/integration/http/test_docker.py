"""The HTTP API over a real engine."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.service.daemons import PATIENCE_S, daemon, settings_in, short_directory
from tests.service.http.recording import replayed

TOOLS = ["python_executor", "shell_executor", "file_operation"]


@pytest.fixture
async def api() -> AsyncIterator[httpx.AsyncClient]:
    async with short_directory() as folder:
        settings = settings_in(folder, listen__http="127.0.0.1:0")
        async with daemon(settings, runtime=None) as running:
            url = f"http://{running.addresses.http}"
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
                yield client


async def test_every_recorded_exchange_is_answered_as_recorded(api: httpx.AsyncClient):
    assert await replayed(api) == []


async def test_an_archive_arrives_with_the_rights_of_user_code(api: httpx.AsyncClient):
    created = await api.post("/sandbox/create", json={"tools_config": TOOLS})
    sandbox_id = created.json()["sandbox_id"]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, size in (("in/a.py", 20), ("in/deep/b", 3_000_000)):
            member = tarfile.TarInfo(name)
            member.size, member.uid, member.gid = size, 0, 0
            tar.addfile(member, io.BytesIO(b"print('from archive')"[:size].ljust(size, b"#")))
        folder = tarfile.TarInfo("empty")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
    uploaded = await api.post(
        f"/sandbox/{sandbox_id}/archive", params={"target_dir": "/sandbox"}, content=packed.getvalue()
    )
    assert uploaded.json() == {"ok": True}
    command = "wc -c < in/deep/b; ls -d empty; stat -c %u in/a.py | grep -cx $(id -u); cat in/a.py | head -c 5"
    body = {"sandbox_id": sandbox_id, "tool_name": "bash", "parameters": {"command": command}}
    assert (await api.post("/sandbox/tool/execute", json=body)).json()["output"] == "3000000\nempty\n1\nprint"
    refused = await api.post(f"/sandbox/{sandbox_id}/archive", params={"target_dir": "/etc"}, content=packed.getvalue())
    assert refused.status_code == 400
    full = await api.post("/sandbox/create", json={"resource_limits": {"working_dir_size": "1m"}})
    url = f"/sandbox/{full.json()['sandbox_id']}/archive"
    assert (await api.post(url, content=packed.getvalue())).status_code == 413


async def test_a_pool_serves_many_callers_each_alone(api: httpx.AsyncClient):
    answer = await api.post("/pool/initialize", params={"pool_size": 2}, json={"tools_config": TOOLS})
    assert answer.status_code == 200, answer.text
    command = {"command": "ls /sandbox /tmp | grep -c mine; touch /sandbox/mine /tmp/mine"}
    calls = [api.post("/pool/execute", params={"tool_name": "shell_executor"}, json=command) for _ in range(6)]
    assert [answer.json()["output"] for answer in await asyncio.gather(*calls)] == ["0\n"] * 6


async def test_an_image_that_is_not_there_is_a_bad_request(api: httpx.AsyncClient):
    answer = await api.post("/sandbox/create", json={"image": "sha256:" + "0" * 64})
    assert answer.status_code in (400, 503)
    assert answer.json()["detail"].startswith("Failed to create sandbox: ")
