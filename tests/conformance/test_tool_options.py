"""The documented options of tools do what they say, over each transport."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from ms_enclave._transports.base import Transport
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave._transports.http import HttpTransport

from tests.conformance.tool_options import ToolOptionsContract
from tests.service.daemons import daemon, settings_in, short_directory


class TestToolOptionsOverGrpc(ToolOptionsContract):
    @pytest.fixture
    async def transport(self) -> AsyncIterator[Transport]:
        async with short_directory() as folder:
            settings = settings_in(folder)
            async with daemon(settings):
                yield GrpcTransport(f"unix:{settings.listen.unix}")


class TestToolOptionsOverHttp(ToolOptionsContract):
    @pytest.fixture
    async def transport(self) -> AsyncIterator[Transport]:
        async with short_directory() as folder:
            url = f"unix:{folder}/h.sock"
            async with daemon(settings_in(folder, listen__http=url)):
                found = HttpTransport(url)
                yield found
                await found.close()
