"""Serves the documented HTTP routes: starts a daemon that does, or forwards to one from a web server of your own."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from ms_enclave._embedded import EmbeddedDaemon, HttpListener
from ms_enclave._model import SandboxConfig, SandboxManagerConfig
from ms_enclave._transports.credentials import exactly
from ms_enclave.errors import DaemonStartFailed, DaemonUnavailable, InvalidRequest, NotServed
from ms_enclave.sandbox._portal import process_portal
from ms_enclave.sandbox.boxes import DockerSandbox, SandboxFactory

if TYPE_CHECKING:
    from ms_enclave._transports.http import HttpTransport
    from ms_enclave.sandbox.server._app import ForwardingApp

__all__ = ["SandboxServer", "create_server"]

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_REFUSED = ("ssl", "uds", "fd")
"""What arguments of `SandboxServer.run` begin with that must not be ignored: they say who may connect, and how."""


class SandboxServer:
    """A server for programs that use ms-enclave over HTTP. `create_server` makes one."""

    def __init__(
        self,
        config: SandboxManagerConfig | Mapping[str, Any] | None = None,
        cleanup_interval: int = 300,
        api_key: str | None = None,
        pool_size: int = 0,
    ) -> None:
        """See `create_server`."""
        if isinstance(config, SandboxManagerConfig):
            config = {name: getattr(config, name) for name in config.model_fields_set}
        given = {"cleanup_interval": cleanup_interval, **dict(config or {})}
        if api_key is not None:
            given["api_key"] = api_key
        if pool_size:
            given["pool_size"] = pool_size
        self.config = SandboxManagerConfig.model_validate(given)

    @functools.cached_property
    def app(self) -> ForwardingApp:
        """The routes as an ASGI application, for a web server of your own (``uvicorn.run(server.app)``).

        It forwards to a daemon: to ``base_url`` if the configuration has one, else to the system's if that serves HTTP
        and no ``api_key`` is wanted, else to one that is started with the first request and ends with this process.
        """
        # With an HTTP client, which takes longer to load than most of the SDK, and which all else does without.
        from ms_enclave.sandbox.server._app import ForwardingApp, Upstream

        return ForwardingApp(Upstream(self.config, self._make_pool))

    def run(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        ssl_certfile: str | os.PathLike[str] | None = None,
        ssl_keyfile: str | os.PathLike[str] | None = None,
        behind_proxy: bool = False,
        **kwargs: Any,
    ) -> None:
        """Serves at an address until Ctrl-C or SIGTERM; then removes all sandboxes. Blocks.

        Anything but a loopback address needs an ``api_key``, and ``ssl_certfile`` with ``ssl_keyfile`` (PEM) or, where
        a proxy before it ends TLS, ``behind_proxy``. Of further arguments (they were uvicorn's) ``log_level`` counts,
        those that say otherwise who may connect are refused, and the others have no effect. Raises
        `DaemonStartFailed`; `DaemonUnavailable` if the daemon dies; ``ValueError`` for half of a certificate.
        """
        level = _log_level(kwargs)
        if bool(ssl_certfile) is not bool(ssl_keyfile):
            raise InvalidRequest("ssl_certfile and ssl_keyfile go together")
        certfile, keyfile = os.fspath(ssl_certfile or ""), os.fspath(ssl_keyfile or "")
        shown = f"{'https' if certfile else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        listener = HttpListener(
            shown.partition("://")[2],
            self.config.api_key,
            certfile=certfile,
            keyfile=keyfile,
            behind_proxy=behind_proxy,
            log_level=level,
            shows_log=True,
        )
        daemon = EmbeddedDaemon(listener)
        with _until_asked_to_stop():
            try:
                try:
                    daemon.ensure()
                except DaemonStartFailed as error:
                    hint = self._hint(host, safe=bool(certfile) or behind_proxy)
                    raise DaemonStartFailed(f"cannot serve {shown}: {error}{hint}") from None
                self._started(f"{shown.partition(':')[0]}://{_reachable(host)}:{port}", shown, certfile)
                code = daemon.wait()
                raise DaemonUnavailable(f"the daemon that served {shown} ended with code {code}")
            finally:
                daemon.stop()

    def _hint(self, host: str, *, safe: bool) -> str:
        lacking = [] if self.config.api_key else ["an api_key"]
        if not safe:
            lacking.append("ssl_certfile with ssl_keyfile (or behind_proxy)")
        if not lacking or _is_loopback(host):
            return ""
        return f"; an address that is not loopback needs {' and '.join(lacking)}"

    def _started(self, url: str, shown: str, certfile: str) -> None:
        if self.config.pool_size:
            from ms_enclave._transports.http import HttpTransport  # as above

            trusted = exactly(certfile) if certfile else None
            process_portal().run(self._make_pool(HttpTransport(url, api_key=self.config.api_key, trusted=trusted)))
        print(f"ms-enclave serves {shown} (Ctrl-C stops it)", file=sys.stderr, flush=True)

    async def _make_pool(self, transport: HttpTransport) -> None:
        """Makes the pool that the configuration asks for."""
        if not self.config.pool_size:
            return
        config: SandboxConfig | Mapping[str, Any] | None = self.config.sandbox_config
        model = SandboxFactory.create_sandbox("docker", config)
        if not isinstance(model, DockerSandbox):
            raise InvalidRequest("sandbox_config: a pool is made of sandboxes of type docker")
        try:
            await transport.initialize_pool("", self.config.pool_size, model.plan())
        finally:
            await transport.close()


def create_server(
    config: SandboxManagerConfig | Mapping[str, Any] | None = None,
    cleanup_interval: int = 300,
    api_key: str | None = None,
    pool_size: int = 0,
) -> SandboxServer:
    """Makes a server; ``run`` starts it.

    ``api_key``: what every request must have in ``X-API-Key``. ``pool_size``: how many sandboxes to keep ready for
    ``/pool/execute``, made as ``config.sandbox_config`` says. ``cleanup_interval`` is accepted and has no effect: the
    daemon itself removes sandboxes whose time is over. What is in ``config`` counts unless an argument says otherwise.
    Raises ``ValueError`` for what is malformed.
    """
    return SandboxServer(config, cleanup_interval, api_key, pool_size)


def _log_level(kwargs: Mapping[str, Any]) -> str:
    for name in kwargs:
        if name.startswith(_REFUSED):
            raise NotServed(f"run({name}=…) is not served; give server.app to a web server of your own instead")
    level = str(kwargs.get("log_level") or "warning").lower()
    return level if level in LOG_LEVELS else {"critical": "error", "trace": "debug"}.get(level, "warning")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reachable(host: str) -> str:
    """Returns an address at which this machine reaches what listens at ``host``."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if address.version == 4 else f"[{host}]"


class _Asked(BaseException):
    """SIGTERM came."""


@contextlib.contextmanager
def _until_asked_to_stop() -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM end the block, and nothing more. Signals reach the main thread only."""

    def ask(number: int, frame: FrameType | None) -> None:
        raise _Asked

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, ask) if in_main else None
    try:
        with contextlib.suppress(KeyboardInterrupt, _Asked):
            yield
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)
