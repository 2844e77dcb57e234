"""Where the engine is."""

from __future__ import annotations

import pytest

from enclaved.errors import EngineUnavailable
from enclaved.runtime.docker import DockerRuntime, detect_engine_url


@pytest.mark.parametrize("environ", [{}, {"DOCKER_HOST": ""}])
def test_the_systems_socket_is_the_default(environ):
    assert detect_engine_url(environ) == "unix:///var/run/docker.sock"


@pytest.mark.parametrize("url", ["unix:///run/user/1000/docker.sock", "tcp://127.0.0.1:2375"])
def test_docker_host_names_another(url):
    assert detect_engine_url({"DOCKER_HOST": url}) == url


@pytest.mark.parametrize("url", ["ssh://host", "npipe:////./pipe/docker", "unix://docker.sock", "tcp://", "/a.sock"])
def test_an_address_that_cannot_be_used_is_refused_with_those_that_can(url):
    for use in (lambda: detect_engine_url({"DOCKER_HOST": url}), lambda: DockerRuntime(url)):
        with pytest.raises(EngineUnavailable, match=r"unix:///path/to/docker\.sock or tcp://host:port"):
            use()


async def test_certificates_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.delenv("DOCKER_CERT_PATH", raising=False)
    runtime = DockerRuntime("tcp://127.0.0.1:1")
    with pytest.raises(EngineUnavailable, match="DOCKER_CERT_PATH"):
        await runtime.info()
    await runtime.close()
