"""Who may call: keys, hosts, origins, how many at once, and what the end of the daemon means."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from enclaved.config import ConfigError
from enclaved.daemon import StartError
from tests.service.daemons import PATIENCE_S, Running, daemon, settings_in

KEY = "correct horse"


@asynccontextmanager
async def served(folder: Path, **flags: str) -> AsyncIterator[httpx.AsyncClient]:
    """Serves on a TCP port of loopback."""
    settings = settings_in(folder, **{"listen__http": "127.0.0.1:0", **flags})
    async with daemon(settings) as running, client_of(running) as client:
        yield client


def client_of(running: Running) -> httpx.AsyncClient:
    """Makes a client for the HTTP API of a daemon on TCP."""
    return httpx.AsyncClient(base_url=f"http://{running.addresses.http}", timeout=PATIENCE_S)


@pytest.fixture
async def locked(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    digest = hashlib.sha256(b"by digest").hexdigest()
    async with served(folder, http__api_keys=f"{KEY},sha256:{digest}") as client:
        yield client


# -- keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": KEY},
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY}"},
        {"X-API-Key": "by digest"},
    ],
)
async def test_a_key_in_a_header_opens_the_api(locked: httpx.AsyncClient, headers: dict[str, str]):
    assert (await locked.get("/stats", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"X-API-Key": ""}, {"X-API-Key": KEY[:-1]}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": "é"}]
)
async def test_without_a_valid_key_nothing_answers(locked: httpx.AsyncClient, headers: dict[str, str]):
    sent = {name: value.encode() for name, value in headers.items()}
    for path in ("/health", "/stats", "/docs", "/openapi.json", "/sandbox/x", "/nothing"):
        answer = await locked.get(path, headers=sent)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert list(answer.json()) == ["detail"]
        assert KEY not in answer.text


async def test_the_digest_of_a_key_is_no_key(locked: httpx.AsyncClient):
    digest = f"sha256:{hashlib.sha256(b'by digest').hexdigest()}"
    assert (await locked.get("/stats", headers={"X-API-Key": digest})).status_code == 401


async def test_a_key_in_the_url_counts_only_where_the_operator_says_so(folder: Path, locked: httpx.AsyncClient):
    assert (await locked.get("/stats", params={"api_key": KEY})).status_code == 401
    (folder / "other").mkdir()
    async with served(folder / "other", http__api_keys=KEY, http__api_key_in_url="true") as client:
        assert (await client.get("/stats", params={"api_key": KEY})).status_code == 200
        assert (await client.get("/stats", params={"api_key": "other"})).status_code == 401


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"listen__http": "0.0.0.0:8000"}, "listen.http must be a loopback address"),
        ({"listen__http": "0.0.0.0:8000", "http__api_keys": KEY}, "which need TLS; set tls.cert and tls.key"),
        ({"listen__http": "unix:relative"}, "listen.http must be an absolute path"),
        ({"listen__http": "here"}, "listen.http must look like 127.0.0.1:50061"),
        ({"listen__http": "127.0.0.1:0", "http__api_keys": "sha256:12"}, "http.api_keys has a digest that is not"),
        ({"listen__http": "127.0.0.1:0", "http__api_keys": "schlüssel"}, "http.api_keys has a key that no header"),
    ],
)
def test_settings_that_make_no_sense_are_refused(flags: dict[str, str], problem: str):
    with pytest.raises(ConfigError, match=problem):
        settings_in(Path("/tmp/x"), **flags)


def test_any_address_may_be_served_behind_a_proxy_that_ends_tls():
    settings = settings_in(Path("/tmp/x"), listen__http="0.0.0.0:8000", tls__behind_proxy="true")
    assert settings.listen.http == "0.0.0.0:8000"


# -- hosts and origins -------------------------------------------------------------------------------------------


async def test_only_known_names_of_this_server_are_answered(folder: Path):
    async with served(folder, http__hosts="box.example") as client:
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "box.example"):
            assert (await client.get("/stats", headers={"Host": host})).status_code == 200
        for host in ("evil.example", "localhost.evil.example", "", "["):
            assert (await client.get("/stats", headers={"Host": host})).status_code == 400


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
async def test_web_pages_of_others_are_refused_and_learn_nothing(folder: Path, origin: str):
    async with served(folder) as client:
        answer = await client.post("/sandbox/create", headers={"Origin": origin})
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
        preflight = await client.options("/sandbox/create", headers={"Origin": origin})
        assert preflight.status_code == 403
        assert (await client.get("/stats")).json()["total_sandboxes"] == 0


async def test_the_page_of_this_server_may_call_it(folder: Path):
    async with served(folder) as client:
        origin = str(client.base_url).rstrip("/")
        assert (await client.get("/stats", headers={"Origin": origin})).status_code == 200


# -- load and the end --------------------------------------------------------------------------------------------


async def started(running: Running) -> None:
    """Waits until an execution runs."""
    async with asyncio.timeout(PATIENCE_S):
        while "enclaved_executions_active 1.0" not in (await running.get("/metrics"))[1]:
            pass


async def begin(client: httpx.AsyncClient, code: str) -> tuple[str, asyncio.Task[httpx.Response]]:
    """Creates a sandbox and starts a call in it."""
    created = await client.post("/sandbox/create", json={"tools_config": ["python_executor"]})
    sandbox_id = created.json()["sandbox_id"]
    body = {"sandbox_id": sandbox_id, "tool_name": "python_executor", "parameters": {"code": code}}
    return sandbox_id, asyncio.create_task(client.post("/sandbox/tool/execute", json=body))


async def test_more_requests_at_once_than_there_may_be_are_told_when_to_come_again(folder: Path):
    settings = settings_in(folder, listen__http="127.0.0.1:0", http__requests_max="1")
    async with daemon(settings) as running, client_of(running) as client:
        sandbox_id, call = await begin(client, "import time; time.sleep(3600)")
        await started(running)
        answer = await client.get("/stats")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        call.cancel()
        await asyncio.wait([call])
        async with asyncio.timeout(PATIENCE_S):  # the place of a client that left is free again
            while (await client.get("/stats")).status_code == 429:
                pass
        assert (await client.delete(f"/sandbox/{sandbox_id}")).status_code == 200


async def test_a_stop_refuses_new_requests_and_lets_running_ones_finish(running: Running, api: httpx.AsyncClient):
    marker = Path(running.settings.state.dir).parent / "go"
    code = f"import os, time\nwhile not os.path.exists({str(marker)!r}): time.sleep(0.01)\nprint('end')"
    Path(running.settings.state.dir).parent.chmod(0o755)
    _, call = await begin(api, code)
    await started(running)
    running.stop.ask("the test")
    async with asyncio.timeout(PATIENCE_S):
        while (answer := await api.get("/stats")).status_code != 503:
            pass
    assert answer.headers["retry-after"]
    assert "shutting down" in answer.json()["detail"]
    marker.touch()
    assert (await call).json()["output"] == "end\n"
    async with asyncio.timeout(PATIENCE_S):
        await running.task
    assert not Path(running.addresses.http.removeprefix("unix:")).exists()


async def test_requests_are_counted_by_route_and_status(running: Running, api: httpx.AsyncClient):
    await api.get("/sandbox/nope")
    await api.get("/sandbox/other")
    await api.get("/no/such/route")
    await api.post("/sandbox/create", json={"memory_limit": "x"})
    lines = (await running.get("/metrics"))[1].splitlines()
    for line in (
        'enclaved_http_requests_total{code="404",route="/sandbox/{sandbox_id}"} 2.0',
        'enclaved_http_requests_total{code="404",route="other"} 1.0',
        'enclaved_http_requests_total{code="400",route="/sandbox/create"} 1.0',
    ):
        assert line in lines


async def test_the_socket_has_the_mode_of_the_other_one(running: Running):
    assert Path(running.addresses.http.removeprefix("unix:")).stat().st_mode & 0o777 == 0o660


async def test_a_port_in_use_is_refused_with_a_hint(folder: Path):
    async with served(folder) as client:
        (folder / "other").mkdir()
        address = f"127.0.0.1:{client.base_url.port}"
        with pytest.raises(StartError, match=r"cannot serve HTTP on .*: Address already in use; .*--listen-http"):
            async with served(folder / "other", listen__http=address):
                pass
