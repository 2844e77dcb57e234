"""What engines and aiohttp say, in the daemon's own words."""

from __future__ import annotations

import json

import aiodocker
import aiohttp
import pytest

from enclaved.errors import EngineRefused, EngineUnavailable, ImageNotFound, ImageUnusable, NoSpace
from enclaved.runtime.docker.errors import docker_errors

URL = "unix:///var/run/docker.sock"


def translated(error: BaseException, image: str = "python:3.11-slim") -> BaseException:
    """What `docker_errors` makes of an error."""
    with pytest.raises(Exception) as caught, docker_errors("start a container", URL, image=image):  # noqa: PT011
        raise error
    assert caught.value.__cause__ is error or caught.value is error
    return caught.value


def connection_failed(reason: OSError) -> aiodocker.DockerError:
    """A failed connection as aiodocker raises it: the reason is only in the context."""
    error = aiodocker.DockerError(900, f"Cannot connect to Docker Engine via {URL} [{reason}]")
    error.__context__ = aiohttp.ClientOSError()
    error.__context__.__context__ = reason
    return error


@pytest.mark.parametrize("reason", [FileNotFoundError(2, "none"), ConnectionRefusedError(111, "refused")])
def test_an_engine_that_does_not_run_is_told_with_the_way_to_start_it(reason):
    error = translated(connection_failed(reason))
    assert isinstance(error, EngineUnavailable)
    assert URL in str(error)
    assert "systemctl start docker" in str(error)
    assert "./scripts/quickstart" in str(error)


@pytest.mark.parametrize("reason", [connection_failed(PermissionError(13, "denied")), PermissionError(13, "denied")])
def test_a_socket_without_permission_is_told_with_the_group_to_join(reason):
    error = translated(reason)
    assert isinstance(error, EngineUnavailable)
    assert URL in str(error)
    assert "usermod -aG docker" in str(error)


def test_a_deadline_that_passed_is_an_engine_that_does_not_answer():
    error = translated(TimeoutError())
    assert isinstance(error, EngineUnavailable)
    assert "did not answer in time to start a container" in str(error)


@pytest.mark.parametrize(
    "broken", [aiohttp.ServerDisconnectedError(), aiohttp.ClientPayloadError("cut"), ConnectionResetError(104, "reset")]
)
def test_a_connection_that_breaks_is_an_engine_that_does_not_answer(broken):
    assert isinstance(translated(broken), EngineUnavailable)


def test_something_else_at_the_address_is_told_as_such():
    error = translated(json.JSONDecodeError("no", "<html>", 0))
    assert isinstance(error, EngineUnavailable)
    assert "DOCKER_HOST" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        'runc create failed: exec: "python3": executable file not found in $PATH: unknown',
        'exec: \\"python3\\": executable file not found in $PATH',
        'exec: "python3": stat python3: no such file or directory: unknown',
        "crun: executable file `python3` not found in $PATH: No such file or directory",
    ],
)
def test_an_image_without_python_needs_the_interpreter_that_a_guest_brings(text):
    error = translated(aiodocker.DockerError(400, text))
    assert isinstance(error, ImageUnusable)
    assert error.image == "python:3.11-slim"
    assert error.lacks_python
    assert "scripts/build-guest-runtime" in str(error)


@pytest.mark.parametrize(
    "text", ['exec: "python3": permission denied: unknown', "exec /usr/bin/python3: exec format error"]
)
def test_an_image_whose_python_does_not_start_is_unusable(text):
    error = translated(aiodocker.DockerError(400, text))
    assert isinstance(error, ImageUnusable)
    assert text in str(error)


def test_a_full_disk_is_told_as_such():
    error = translated(aiodocker.DockerError(500, "mkdir /var/lib/docker/x: no space left on device"))
    assert isinstance(error, NoSpace)


def test_a_missing_image_is_named_as_the_user_named_it():
    error = translated(aiodocker.DockerError(404, "No such image: sha256:abc"))
    assert isinstance(error, ImageNotFound)
    assert error.name == "python:3.11-slim"


@pytest.mark.parametrize(
    "error", [aiodocker.DockerError(503, "no"), aiodocker.DockerError(500, "containerd: transport is closing")]
)
def test_an_engine_in_trouble_is_worth_another_try(error):
    assert isinstance(translated(error), EngineUnavailable)


def test_anything_else_is_a_refusal_in_the_engines_words():
    error = translated(aiodocker.DockerError(409, "Conflict. The name is already in use"))
    assert isinstance(error, EngineRefused)
    assert "refused to start a container: Conflict." in str(error)


def test_our_own_errors_and_mistakes_pass_through():
    for own in (ImageUnusable("x", "why"), KeyError("Id")):
        assert translated(own) is own
