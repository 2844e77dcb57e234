"""A small client for the Docker Engine API, standard library only.

The scripts run before anything is installed, on machines where the ``docker`` command may be missing; so they ask the
engine itself. The product does not use this file.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode, urlsplit

from _console import Refused

DEFAULT_HOST = "unix:///var/run/docker.sock"
CHUNK_BYTES = 1024 * 1024


class EngineError(Refused):
    """Says that the engine cannot be reached or refused a request, and what to do about it."""


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection through a unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("docker", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """A Docker engine at a host in the form of ``DOCKER_HOST``."""

    def __init__(self, host: str) -> None:
        self.host = host

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Engine:
        """Returns the engine that ``DOCKER_HOST`` names, else the one at the usual socket."""
        return cls(environ.get("DOCKER_HOST") or DEFAULT_HOST)

    def version(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """Returns what the engine says of itself; raises ``EngineError`` if none answers within ``timeout_s``."""
        return dict(self._json("GET", "/version", timeout_s=timeout_s))

    def image(self, name: str) -> dict[str, Any] | None:
        """Returns what the engine knows about a local image, or None if it has none of that name."""
        try:
            return dict(self._json("GET", f"/images/{quote(name)}/json"))
        except _NotFound:
            return None

    def import_image(
        self, name: str, archive: BinaryIO, *, changes: Sequence[str], sent: Callable[[int], None]
    ) -> None:
        """Makes an image from a root file system archive; ``sent`` hears the number of bytes sent so far."""
        repository, tag = split_name(name)
        query = [("fromSrc", "-"), ("repo", repository), ("tag", tag), *(("changes", change) for change in changes)]
        path = "/images/create?" + urlencode(query)
        for line in self._stream("POST", path, body=_chunks(archive, sent), timeout_s=600):
            if "error" in line:
                raise EngineError(f"the engine refused the image: {line['error']}")

    def remove_unused_image(self, image_id: str) -> None:
        """Removes an image that has no name and no container; leaves any other alone."""
        image = self.image(image_id)
        if image is not None and not image.get("RepoTags"):
            try:
                self._json("DELETE", f"/images/{quote(image_id)}")
            except _Conflict:
                return

    def pull(self, name: str, *, heard: Callable[[PullState], None], first_answer_s: float, silence_s: float) -> None:
        """Pulls an image; raises ``EngineError`` if no registry gives it.

        ``first_answer_s`` limits the wait for the registry's first word, ``silence_s`` the silence after it.
        """
        repository, tag = split_name(name)
        path = "/images/create?" + urlencode({"fromImage": repository, "tag": tag})
        layers: dict[str, tuple[int, int]] = {}
        for line in self._stream("POST", path, timeout_s=first_answer_s, silence_s=silence_s):
            if "error" in line:
                raise EngineError(str(line["error"]))
            detail = line.get("progressDetail") or {}
            if line.get("status") == "Downloading" and detail.get("total"):
                layers[str(line.get("id"))] = (int(detail["current"]), int(detail["total"]))
            done = sum(current for current, _ in layers.values())
            heard(PullState(str(line.get("status", "")), done, sum(total for _, total in layers.values())))

    def containers(self, label: str) -> list[Container]:
        """Returns all containers, running or not, that carry a label of that name."""
        query = urlencode({"all": "true", "filters": json.dumps({"label": [label]})})
        return [
            Container(
                str(item["Id"]),
                tuple(str(mount.get("Source", "")) for mount in item.get("Mounts") or ()),
                dict(item.get("Labels") or {}),
            )
            for item in self._json("GET", f"/containers/json?{query}")
        ]

    def remove_container(self, container_id: str) -> None:
        """Kills and removes a container; one that is gone already is fine."""
        try:
            self._json("DELETE", f"/containers/{quote(container_id)}?force=true&v=true", timeout_s=30)
        except _NotFound:
            return

    def _json(self, method: str, path: str, *, timeout_s: float = 30) -> Any:
        connection = self._connect(timeout_s)
        with closing(connection):
            content = self._open(connection, method, path).read()
        return json.loads(content) if content.strip() else {}

    def _stream(
        self,
        method: str,
        path: str,
        *,
        body: Iterator[bytes] | None = None,
        timeout_s: float,
        silence_s: float | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields the JSON lines of an answer; ``silence_s`` limits the wait for all but the first of them."""
        connection = self._connect(timeout_s)
        with closing(connection):
            response = self._open(connection, method, path, body)
            if silence_s is not None and connection.sock is not None:
                connection.sock.settimeout(silence_s)
            try:
                for line in response:
                    if line.strip():
                        yield json.loads(line)
            except OSError as error:
                raise EngineError(f"the engine at {self.host} stopped answering ({error})") from error

    def _open(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Iterator[bytes] | None = None
    ) -> http.client.HTTPResponse:
        try:
            connection.request(method, path, body=body, encode_chunked=body is not None, headers=_headers(body))
            response = connection.getresponse()
        except PermissionError as error:
            message = f"no permission on the Docker engine at {self.host}. Fix: run as root, or join its group (docker)"
            raise NoPermission(message) from error
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"no Docker engine answers at {self.host} ({error})") from error
        if response.status < 400:
            return response
        try:
            message = str(json.loads(response.read()).get("message", response.reason))
        except ValueError:
            message = response.reason
        if response.status == 404:
            raise _NotFound(message)
        if response.status == 409:
            raise _Conflict(message)
        raise EngineError(f"the engine at {self.host} answered {response.status}: {message}")

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        url = urlsplit(self.host)
        if url.scheme == "unix":
            return _UnixConnection(url.path, timeout_s)
        if url.scheme in ("tcp", "http", "https") and url.hostname:
            if url.scheme == "https" or os.environ.get("DOCKER_TLS_VERIFY"):
                port = url.port or 2376
                return http.client.HTTPSConnection(url.hostname, port, timeout=timeout_s, context=_client_tls())
            return http.client.HTTPConnection(url.hostname, url.port or 2375, timeout=timeout_s)
        raise EngineError(f"cannot use DOCKER_HOST={self.host}: only unix://, tcp:// and https:// addresses work here")


@dataclass(frozen=True)
class Container:
    """A container, the paths of this machine that are mounted in it, and its labels."""

    id: str
    mounts: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PullState:
    """How far a pull is."""

    status: str
    done_bytes: int
    known_bytes: int
    """The size of the layers whose download has begun."""


class NoPermission(EngineError):
    """An engine is there, but this user may not talk to it."""


class _NotFound(EngineError):
    """The engine has no such thing."""


class _Conflict(EngineError):
    """Something else still uses the thing."""


def split_name(name: str) -> tuple[str, str]:
    """Splits an image name into repository and tag; the tag is ``latest`` where none is given."""
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        return name, "latest"
    return repository, tag


def _chunks(archive: BinaryIO, sent: Callable[[int], None]) -> Iterator[bytes]:
    total = 0
    while chunk := archive.read(CHUNK_BYTES):
        yield chunk
        total += len(chunk)
        sent(total)


def _headers(body: Iterator[bytes] | None) -> dict[str, str]:
    if body is None:
        return {}
    return {"Content-Type": "application/x-tar", "Transfer-Encoding": "chunked"}


def _client_tls() -> ssl.SSLContext:
    folder = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
    try:
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    except OSError as error:
        raise EngineError(f"cannot read the engine's certificates in {folder} ({error})") from error
    return context
