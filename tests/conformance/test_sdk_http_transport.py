"""The HTTP transport keeps what every transport promises, as far as the documented routes go."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from ms_enclave._transports.base import Transport
from ms_enclave._transports.http import HttpTransport

from tests.conformance.sdk_transport import TransportContract
from tests.service.daemons import daemon, settings_in, short_directory


class _OverHttp(TransportContract):
    cannot = frozenset({"labels", "pause", "update", "start", "stream", "read", "tools of the daemon", "delete a pool"})


class TestHttpTransportOverASocket(_OverHttp):
    """As an ASGI application forwards to an embedded daemon."""

    @pytest.fixture
    async def transport(self) -> AsyncIterator[Transport]:
        async with short_directory() as folder:
            url = f"unix:{folder}/h.sock"
            async with daemon(settings_in(folder, listen__http=url)):
                found = HttpTransport(url)
                yield found
                await found.close()


class TestHttpTransportOverTcp(_OverHttp):
    """As programs reach a server, with a key."""

    @pytest.fixture
    async def transport(self) -> AsyncIterator[Transport]:
        async with short_directory() as folder:
            settings = settings_in(folder, listen__http="127.0.0.1:0", http__api_keys="right, other")
            async with daemon(settings) as running:
                found = HttpTransport(f"http://{running.addresses.http}", api_key="right")
                yield found
                await found.close()
