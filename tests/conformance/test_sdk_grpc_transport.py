"""The gRPC transport keeps what every transport promises."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from ms_enclave._transports.base import Transport
from ms_enclave._transports.grpc import GrpcTransport

from tests.conformance.sdk_transport import TransportContract
from tests.service.daemons import daemon, settings_in, short_directory


class TestGrpcTransport(TransportContract):
    """Over a unix socket, to a daemon in this process."""

    @pytest.fixture
    async def transport(self) -> AsyncIterator[Transport]:
        async with short_directory() as folder:
            settings = settings_in(folder)
            async with daemon(settings):
                yield GrpcTransport(f"unix:{settings.listen.unix}")
