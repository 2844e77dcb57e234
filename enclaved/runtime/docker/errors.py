"""Translates what aiodocker, aiohttp and the engine say into the daemon's own errors, in one place.

Every call to the engine stands in ``with docker_errors(...)``. Engines tell their errors as text, so the few texts that
matter are recognised here and nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import aiodocker
import aiohttp

from enclaved.errors import EnclaveError, EngineRefused, EngineUnavailable, ImageNotFound, ImageUnusable, NoSpace

CONNECTION_FAILED = 900
"""Status that aiodocker gives to a connection that could not be made or broke."""

NO_PYTHON = (
    "it has no python3 in its PATH; make the interpreter that such images need with scripts/build-guest-runtime, "
    "or use an image with Python 3.8 or newer, such as ms-enclave/python:3.11"
)
_PYTHON_MISSING = re.compile(r'exec: \\?"python3\\?": .*not found|stat python3: no such file|`python3` not found')
_PYTHON_BROKEN = re.compile(r'exec: \\?"[^"]*python3[^"]*\\?": permission denied|exec [^ ]*python3[^ ]*: ')
_FILES_UNSEEN = re.compile(
    r"bind source path does not exist|mounts denied|is not shared from the host|statfs /\S+: no such"
)
_ENGINE_TROUBLE = ("context deadline exceeded", "transport is closing", "error while dialing", "containerd.sock")


@contextmanager
def docker_errors(operation: str, engine_url: str, *, image: str = "") -> Iterator[None]:
    """Raises the daemon's errors in place of foreign ones.

    ``operation`` completes "the engine refused to ...". ``image`` names the image that the call is about, if any.
    """
    try:
        yield
    except aiodocker.DockerError as error:
        raise _translated(error, operation, engine_url, image) from error
    except TimeoutError as error:
        raise EngineUnavailable(
            engine_url,
            f"the container engine at {engine_url} did not answer in time to {operation}; try again, and look at "
            "'systemctl status docker' if it lasts",
        ) from error
    except PermissionError as error:
        raise _no_permission(engine_url) from error
    except (aiohttp.ClientResponseError, json.JSONDecodeError) as error:
        raise EngineUnavailable(
            engine_url, f"what answers at {engine_url} is no container engine; check the address in DOCKER_HOST"
        ) from error
    except (aiohttp.ClientError, OSError) as error:
        raise _not_there(engine_url) from error


def _translated(error: aiodocker.DockerError, operation: str, engine_url: str, image: str) -> EnclaveError:
    text = error.message.strip()
    if error.status == CONNECTION_FAILED:
        return _no_permission(engine_url) if _is_about_permission(error) else _not_there(engine_url)
    if is_no_space(error):
        return NoSpace("", f"no space left on the engine's disk to {operation}; 'docker system df' shows what takes it")
    if _PYTHON_MISSING.search(text):
        return ImageUnusable(image, NO_PYTHON, lacks_python=True)
    if _PYTHON_BROKEN.search(text):
        return ImageUnusable(image, f"its python3 does not start: {text}")
    if error.status == 404 and "no such image" in text.lower():
        return ImageNotFound(image, "it was removed from the engine; build or pull it again")
    if error.status == 503 or any(trouble in text.lower() for trouble in _ENGINE_TROUBLE):
        return EngineUnavailable(engine_url, f"the container engine at {engine_url} is in trouble: {text}")
    return EngineRefused(operation, text, files_unseen=bool(_FILES_UNSEEN.search(text)))


def is_no_space(error: aiodocker.DockerError) -> bool:
    """Whether the engine's disk is full."""
    return "no space left on device" in error.message


def _is_about_permission(error: BaseException) -> bool:
    """Whether the connection failed for lack of permission: aiodocker keeps the cause as context only."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, PermissionError) or isinstance(getattr(seen, "os_error", None), PermissionError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _no_permission(engine_url: str) -> EngineUnavailable:
    return EngineUnavailable(
        engine_url,
        f"no permission on the container engine's socket {engine_url}: add the daemon's user to the group that owns "
        "it ('sudo usermod -aG docker USER', then log in again), or run the daemon as root",
    )


def _not_there(engine_url: str) -> EngineUnavailable:
    return EngineUnavailable(
        engine_url,
        f"no container engine answers at {engine_url}: start it with 'systemctl start docker', let "
        "./scripts/quickstart install one, or name another in DOCKER_HOST",
    )
