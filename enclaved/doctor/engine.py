"""A look at a container engine and at what it runs, from outside of the daemon. Only reads.

The doctor judges the daemon, so it does not ask through the daemon's own eyes.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
_ID = re.compile(r"[0-9a-f]{64}")


class EngineSilent(Exception):
    """The engine does not answer, or not as an engine does; the text says why."""


class EngineView:
    """An engine at ``unix:///path`` or ``tcp://host:port``. May be used from any thread. Every call blocks."""

    def __init__(self, url: str, *, answer_s: float = 10.0) -> None:
        """Takes the address, and how many seconds an answer may take."""
        self.url = url
        self._answer_s = answer_s

    @property
    def socket_path(self) -> Path | None:
        """The engine's socket, if it has one."""
        parts = urlsplit(self.url)
        return Path(parts.path) if parts.scheme == "unix" else None

    def version(self) -> dict[str, Any]:
        """Asks for its versions. Raises `EngineSilent`."""
        return self._object("/version")

    def info(self) -> dict[str, Any]:
        """Asks what it is and can. Raises `EngineSilent`."""
        return self._object("/info")

    def images(self) -> list[str]:
        """Lists the names of its images. Raises `EngineSilent`."""
        found = self._get("/images/json")
        return [name for each in found if isinstance(each, dict) for name in each.get("RepoTags") or ()]

    def container_of(self, sandbox_id: str) -> dict[str, Any] | None:
        """Looks at the container of a sandbox; ``None`` if there is none. Raises `EngineSilent`."""
        filters = quote(json.dumps({"label": [f"enclaved.id={sandbox_id}"]}))
        found = self._get(f"/containers/json?all=1&filters={filters}")
        ids = [str(each.get("Id", "")) for each in found if isinstance(each, dict)]
        if not ids or not _ID.fullmatch(ids[0]):
            return None
        try:
            return self._object(f"/containers/{ids[0]}/json")
        except EngineSilent as error:
            if "404" in str(error):  # it went in between
                return None
            raise

    def _object(self, path: str) -> dict[str, Any]:
        found = self._get(path)
        if not isinstance(found, dict):
            raise EngineSilent(f"the engine at {self.url} does not answer as an engine does")
        return found

    def _get(self, path: str) -> Any:
        connection = self._connection()
        try:
            connection.request("GET", path, headers={"Host": "docker"})
            answer = connection.getresponse()
            data = answer.read(ANSWER_BYTES_MAX)
            if answer.status != 200:
                raise EngineSilent(f"the engine at {self.url} answered {answer.status} to {path.partition('?')[0]}")
            return json.loads(data)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EngineSilent(f"the engine at {self.url} does not answer: {error}") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return _UnixConnection(parts.path, self._answer_s)
        try:
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise EngineSilent(f"{self.url} is no address of an engine: {error}") from error
        if parts.scheme not in ("tcp", "http", "https") or host is None:
            raise EngineSilent(f"{self.url} is no address of an engine; use unix:///path or tcp://host:port")
        tls = _tls(os.environ)
        if tls is None:
            return http.client.HTTPConnection(host, port or 2375, timeout=self._answer_s)
        return http.client.HTTPSConnection(host, port or 2376, timeout=self._answer_s, context=tls)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, answer_s: float) -> None:
        super().__init__("localhost", timeout=answer_s)
        self._path = path

    def connect(self) -> None:
        """Connects to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _tls(environ: Mapping[str, str]) -> ssl.SSLContext | None:
    if not environ.get("DOCKER_TLS_VERIFY"):
        return None
    folder = Path(environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
    try:
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.load_cert_chain(str(folder / "cert.pem"), str(folder / "key.pem"))
    except OSError as error:
        raise EngineSilent(f"the certificates in {folder} cannot be used: {error}") from error
    return context
