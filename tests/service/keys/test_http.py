"""Who may call over HTTP, by the same tokens and the same table as over gRPC."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from enclaved.config import Settings
from enclaved.core.access import METHODS
from enclaved.gateway.app import make_api
from enclaved.gateway.scoped import Refusal, method_of
from tests.service.daemons import PATIENCE_S, daemon, settings_in
from tests.service.keys.ground import revoke, token


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        daemon(settings) as running,
        httpx.AsyncClient(base_url=f"http://{running.addresses.http}", timeout=PATIENCE_S) as client,
    ):
        yield client


def closed(folder: Path, **flags: str) -> Settings:
    """Settings of a daemon whose HTTP API needs tokens."""
    return settings_in(folder, **{"listen__http": "127.0.0.1:0", "listen__http_auth": "required", **flags})


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def test_a_token_opens_the_api_in_either_header_until_it_is_revoked(folder: Path):
    settings = closed(folder)
    secret = token(settings)
    async with served(settings) as client:
        for headers in (bearer(secret), {"X-API-Key": secret}):
            assert (await client.get("/sandboxes", headers=headers)).status_code == 200
        refused = [(await client.get("/sandboxes", headers=headers)) for headers in ({}, bearer("mse_x"))]
        revoke(settings, "ci")
        refused.append(await client.get("/sandboxes", headers=bearer(secret)))
    assert {(answer.status_code, answer.text) for answer in refused} == {(401, refused[0].text)}


async def test_tokens_and_keys_of_the_configuration_count_side_by_side(folder: Path):
    settings = closed(folder, http__api_keys="a key of old")
    secret = token(settings)
    async with served(settings) as client:
        for given in (secret, "a key of old"):
            assert (await client.get("/sandboxes", headers={"X-API-Key": given})).status_code == 200
        assert (await client.get("/sandboxes", headers={"X-API-Key": "another"})).status_code == 401


async def test_keys_of_the_configuration_have_the_role_that_it_says(folder: Path):
    async with served(closed(folder, http__api_keys="watch", http__role="monitor")) as client:
        headers = {"X-API-Key": "watch"}
        assert (await client.get("/sandboxes", headers=headers)).status_code == 200
        answer = await client.post("/sandbox/create?sandbox_type=docker", headers=headers, json={})
        assert answer.status_code == 403
        assert "SandboxService.CreateSandbox needs the scope 'create'" in answer.json()["detail"]


async def test_a_token_in_the_url_is_none_and_is_in_no_log(folder: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG", logger="enclaved")
    settings = closed(folder)
    secret = token(settings)
    async with served(settings) as client:
        for name in ("api_key", "token", "access_token", "authorization"):
            assert (await client.get("/sandboxes", params={name: secret})).status_code == 401
    said = [record for record in caplog.records if record.name.startswith("enclaved")]
    assert said
    assert secret not in repr([vars(record) for record in said])


async def test_without_a_key_that_is_needed_others_headers_do_no_harm_but_a_bad_token_does(folder: Path):
    settings = settings_in(folder, listen__http="127.0.0.1:0")
    secret = token(settings, "watcher", role="monitor")
    async with served(settings) as client:
        assert (await client.get("/sandboxes", headers={"X-API-Key": "of an earlier server"})).status_code == 200
        assert (await client.get("/sandboxes", headers=bearer("mse_nothing"))).status_code == 401
        answer = await client.post("/sandbox/create?sandbox_type=docker", headers=bearer(secret), json={})
        assert answer.status_code == 403


def routes() -> list[tuple[str, str]]:
    """Every route that the application has, with each of its methods."""
    nothing: Any = None
    app: Any = make_api(nothing, 1)
    return [(method, route.path) for route in app.routes for method in route.methods or ()]


async def test_every_route_is_listed_as_a_method_of_the_contract():
    missing = []
    for method, path in routes():
        found = method_of(method, re.sub(r"\{\w+\}", "some-id", path))
        if isinstance(found, Refusal) or found not in METHODS:
            missing.append((method, path))
    assert missing == []


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/sandbox/create", "SandboxService.GetSandbox"),
        ("POST", "/sandbox/create", "SandboxService.CreateSandbox"),
        ("GET", "/openapixjson", Refusal(())),
        ("GET", "/sandbox/a/b", Refusal(())),
        ("GET", "/sandbox/", Refusal(())),
        ("GET", "/health/", Refusal(())),
        ("PUT", "/sandbox/x", Refusal(("DELETE", "GET"))),
    ],
)
def test_a_path_is_the_route_that_it_is_for_the_application(method: str, path: str, found: str | Refusal):
    assert method_of(method, path) == found
