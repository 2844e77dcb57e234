"""The description of the API, the page made of it, and what happens to requests made from it at random."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from tests.service.daemons import daemon, settings_in, short_directory

ROUTES = {
    ("GET", "/health"),
    ("GET", "/stats"),
    ("POST", "/sandbox/create"),
    ("GET", "/sandboxes"),
    ("GET", "/sandbox/{sandbox_id}"),
    ("POST", "/sandbox/{sandbox_id}/stop"),
    ("DELETE", "/sandbox/{sandbox_id}"),
    ("POST", "/sandbox/tool/execute"),
    ("GET", "/sandbox/{sandbox_id}/tools"),
    ("POST", "/sandbox/{sandbox_id}/archive"),
    ("POST", "/pool/initialize"),
    ("POST", "/pool/execute"),
}


async def test_every_documented_route_is_described_with_examples(api: httpx.AsyncClient):
    found = (await api.get("/openapi.json")).json()
    described = {(method.upper(), path): op for path, ops in found["paths"].items() for method, op in ops.items()}
    assert described.keys() == ROUTES
    for route, operation in described.items():
        assert operation["responses"]["200"]["content"]["application/json"]["example"], route
        assert operation["summary"], route
    for path in ("/sandbox/create", "/pool/initialize", "/sandbox/tool/execute", "/pool/execute"):
        body = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert body["example"]
        assert "$ref" not in str(body["schema"])
    assert set(found["components"]["securitySchemes"]) == {"header", "bearer"}


async def test_the_page_shows_every_route_and_loads_nothing(api: httpx.AsyncClient):
    answer = await api.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    for method, path in ROUTES:
        assert f"<b>{method}</b> <code>{path}</code>" in answer.text
    assert re.findall(r"https?://|<script|src=|@import", answer.text) == []


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("PUT", "/stats", 405)])
async def test_what_is_no_route_has_a_detail_too(api: httpx.AsyncClient, method: str, path: str, status: int):
    answer = await api.request(method, path)
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])


class Server:
    """A daemon on a thread of its own, since requests made at random are made synchronously."""

    def __init__(self) -> None:
        self.url = ""
        self._up, self._down = threading.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            folder = await stack.enter_async_context(short_directory())
            limits = {"limits__sandboxes_max": "6", "limits__timeout_max_s": "2", "limits__timeout_default_s": "2"}
            flags = {"listen__http": "127.0.0.1:0", **limits}
            running = await stack.enter_async_context(daemon(settings_in(folder, **flags)))
            self.url = f"http://{running.addresses.http}"
            self._up.set()
            await self._down.wait()

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._up.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._down.set)
        self._thread.join(60)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.mark.parametrize(("method", "path"), sorted(ROUTES))
def test_no_request_is_answered_with_a_fault_of_ours(server: Server, method: str, path: str):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    schema.config.generation.update(modes=list(schemathesis.GenerationMode))
    answered = set()

    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path][method].as_strategy())
    def check(case: schemathesis.Case) -> None:
        response = case.call(base_url=server.url)
        answered.add(response.status_code)
        case.validate_response(response, checks=[not_a_server_error])

    check()
    assert answered
