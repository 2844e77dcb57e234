"""A manager of sandboxes that a daemon on this machine keeps, or one whose address is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ms_enclave._local import process_daemons
from ms_enclave._model import SandboxManagerConfig, SandboxManagerType
from ms_enclave._transports.base import Transport
from ms_enclave.sandbox.manager.base import SandboxManager, register_manager


@register_manager(SandboxManagerType.LOCAL)
class LocalSandboxManager(SandboxManager):
    """Keeps sandboxes at the daemon of ``MS_ENCLAVE_ADDRESS``, else the system's, else one started for this process."""

    manager_type: ClassVar[SandboxManagerType] = SandboxManagerType.LOCAL

    def __init__(
        self,
        config: SandboxManagerConfig | Mapping[str, Any] | None = None,
        *,
        address: str | None = None,
        token: str | None = None,
        **settings: Any,
    ) -> None:
        """``address``: the daemon to use (``unix:/path``, ``host:port``, or ``https://host:port`` for TLS).

        ``token``: who calls; not given, ``api_key`` counts, else ``MS_ENCLAVE_TOKEN`` for an address that was given.
        ``settings``: see `SandboxManager`.
        """
        super().__init__(config, **settings)
        self._address = address
        self._token = self.config.api_key if token is None else token

    async def _connect(self) -> Transport:
        return await process_daemons().connect(self._address, token=self._token, request_timeout_s=self.config.timeout)
