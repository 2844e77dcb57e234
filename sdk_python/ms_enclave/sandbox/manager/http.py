"""A manager of sandboxes that a server keeps, over the documented HTTP routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ms_enclave._model import SandboxManagerConfig, SandboxManagerType
from ms_enclave._transports.base import Transport
from ms_enclave._transports.credentials import told_token
from ms_enclave.errors import InvalidRequest
from ms_enclave.sandbox.manager.base import SandboxManager, register_manager

if TYPE_CHECKING:
    from ms_enclave._transports.http import HttpTransport


@register_manager(SandboxManagerType.HTTP)
class HttpSandboxManager(SandboxManager):
    """Keeps sandboxes at an HTTP server: ``HttpSandboxManager(base_url='http://127.0.0.1:8000')``.

    `list_sandboxes` and `get_stats` show all that the server keeps, whoever made it, and the pool is the server's:
    other callers use it as well, and it stays when this manager stops. What the routes do not offer (watching a
    program, reading a file out, starting a stopped sandbox) raises `NotServed`.
    """

    manager_type: ClassVar[SandboxManagerType] = SandboxManagerType.HTTP

    def __init__(self, config: SandboxManagerConfig | Mapping[str, Any] | None = None, **settings: Any) -> None:
        """``settings`` are fields of `SandboxManagerConfig`: ``base_url``, ``api_key``, ``timeout`` and others.

        ``api_key`` is a key of the server or a token; not given, ``MS_ENCLAVE_TOKEN`` counts. For ``https://``,
        ``MS_ENCLAVE_CA`` names the certificates to trust. Raises ``ValueError`` without a ``base_url``, for one that is
        no address, and for a token that would travel in the open.
        """
        # An HTTP client takes longer to load than most of the SDK, which does without.
        from ms_enclave._transports.http import REQUEST_S, HttpTransport

        super().__init__(config, **settings)
        if not self.config.base_url:
            raise InvalidRequest("base_url: is needed, such as http://127.0.0.1:8000")
        self._listed = {}
        self._transport: HttpTransport = HttpTransport(
            self.config.base_url,
            api_key=told_token(self.config.api_key) or None,
            request_timeout_s=REQUEST_S if self.config.timeout is None else self.config.timeout,
        )

    async def _connect(self) -> Transport:
        return self._transport

    async def stop(self) -> None:
        """Removes every sandbox that it made, but for those of the pool, and closes its connections."""
        try:
            await super().stop()
        finally:
            await self._transport.close()

    async def get_stats(self) -> dict[str, Any]:
        """Returns the statistics of the server."""
        return await self._transport.stats()

    def _check_pool(self) -> None:
        """Leaves the question to the server, whose pool somebody else may have made."""

    async def _delete_pool(self) -> None:
        """Leaves the pool to the others who use it."""
