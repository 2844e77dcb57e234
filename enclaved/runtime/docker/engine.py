"""The connection to one engine: where it is, how long it may take, and a client that is made when it is needed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

import aiodocker

from enclaved.errors import EngineUnavailable
from enclaved.runtime.docker.errors import docker_errors
from enclaved.runtime.docker.facts import EngineFacts, facts_of

DEFAULT_ENGINE_URL = "unix:///var/run/docker.sock"


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long the engine may take, in seconds, before a call fails with `EngineUnavailable`."""

    query_s: float = 10.0
    create_s: float = 60.0
    start_s: float = 60.0
    remove_s: float = 60.0
    pull_s: float = 900.0


def detect_engine_url(environ: Mapping[str, str] = os.environ) -> str:
    """The engine that the Docker command line would use: ``DOCKER_HOST`` if set, else the system's socket.

    Raises `EngineUnavailable` for a ``DOCKER_HOST`` that is neither ``unix:///path`` nor ``tcp://host:port``.
    """
    return checked_engine_url(environ.get("DOCKER_HOST") or DEFAULT_ENGINE_URL)


def checked_engine_url(url: str) -> str:
    """Returns the address. Raises `EngineUnavailable` if it is not one that the daemon can talk to."""
    scheme, separator, rest = url.partition("://")
    good = separator and (
        (scheme == "unix" and PurePosixPath(rest).is_absolute()) or (scheme == "tcp" and rest.strip("/"))
    )
    if not good:
        raise EngineUnavailable(
            url,
            f"cannot reach a container engine at {url!r}: use unix:///path/to/docker.sock or tcp://host:port "
            "(DOCKER_HOST, or the daemon's setting for it)",
        )
    return url


@dataclass(slots=True)
class _Client:
    docker: aiodocker.Docker
    users: int = 0
    facts: EngineFacts | None = None


class Engine:
    """One engine. Survives its restarts: after a failed call the next one makes a new client.

    ``connections_max``: how many connections it may have open at once; more wait. 0: any number. ``waived``: names of
    protections that the operator does without.
    """

    def __init__(
        self, url: str, deadlines: Deadlines, *, connections_max: int = 100, waived: Collection[str] = ()
    ) -> None:
        self.url = checked_engine_url(url)
        self._waived = waived
        self.deadlines = deadlines
        self._connections_max = connections_max
        self._client: _Client | None = None

    @asynccontextmanager
    async def calling(self, operation: str, deadline_s: float, *, image: str = "") -> AsyncIterator[aiodocker.Docker]:
        """Lends the client for one call, with a deadline and with the daemon's errors in place of foreign ones."""
        async with self.using() as docker:
            with docker_errors(operation, self.url, image=image):
                async with asyncio.timeout(deadline_s):
                    yield docker

    @asynccontextmanager
    async def using(self) -> AsyncIterator[aiodocker.Docker]:
        """Lends the client without a deadline, for what outlives a call. It stays open until the last user leaves."""
        if self._client is None:
            self._client = _Client(self._connected())
        client = self._client
        client.users += 1
        try:
            yield client.docker
        except EngineUnavailable:
            # The engine that comes back may be another version: the next call makes a new client, which asks it.
            if self._client is client:
                self._client = None
            raise
        finally:
            client.users -= 1
            if client.users == 0 and self._client is not client:
                await client.docker.close()

    def _connected(self) -> aiodocker.Docker:
        try:
            docker = aiodocker.Docker(self.url)
            # The library takes a number only with a connector that is made by hand, certificates included.
            docker.connector._limit = self._connections_max  # noqa: SLF001
            return docker
        except (ValueError, OSError) as error:  # For tcp:// it reads certificates.
            raise EngineUnavailable(
                self.url,
                f"the certificates for the container engine at {self.url} cannot be used ({error}); "
                "check DOCKER_TLS_VERIFY and DOCKER_CERT_PATH",
            ) from error

    async def facts(self) -> EngineFacts:
        """What the create body depends on, asked once per client. Raises `EngineRefused` (see `facts_of`)."""
        if self._client is not None and self._client.facts is not None:
            return self._client.facts
        async with self.calling("say what it is", self.deadlines.query_s) as docker:
            facts = facts_of(await docker.system.info(), self._waived)
        if self._client is not None:
            self._client.facts = facts
        return facts

    async def close(self) -> None:
        """Closes the client, if there is one; calls that still use it fail."""
        client, self._client = self._client, None
        if client is not None:
            await client.docker.close()
