"""A connection to the daemon under attack, and what else is known of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

import grpc
import grpc.aio
from ms_enclave.v1 import context_service_pb2_grpc as context_grpc
from ms_enclave.v1 import execution_service_pb2_grpc as execution_grpc
from ms_enclave.v1 import file_service_pb2_grpc as file_grpc
from ms_enclave.v1 import image_service_pb2_grpc as image_grpc
from ms_enclave.v1 import sandbox_service_pb2_grpc as sandbox_grpc
from ms_enclave.v1 import system_service_pb2 as system_pb
from ms_enclave.v1 import system_service_pb2_grpc as system_grpc

from enclaved.config import is_loopback, parse_address
from enclaved.doctor import host_view

TOKEN_VARIABLE: Final = "MS_ENCLAVE_TOKEN"  # noqa: S105 - the name of a variable
CA_VARIABLE: Final = "MS_ENCLAVE_CA"
ANSWER_S: Final = 20.0
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),  # the daemon must refuse, not our own library
    ("grpc.max_metadata_size", 1024 * 1024),
    ("grpc.absolute_max_metadata_size", 2 * 1024 * 1024),
)


class BadAddress(Exception):
    """The address cannot be used; the text says what to write."""


class Stubs:
    """The services over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.sandboxes = sandbox_grpc.SandboxServiceStub(channel)
        self.executions = execution_grpc.ExecutionServiceStub(channel)
        self.contexts = context_grpc.ContextServiceStub(channel)
        self.files = file_grpc.FileServiceStub(channel)
        self.system = system_grpc.SystemServiceStub(channel)
        self.images = image_grpc.ImageServiceStub(channel)


@dataclass(frozen=True)
class Daemon:
    """The daemon under attack."""

    channel: grpc.aio.Channel
    stubs: Stubs
    socket_path: Path | None = None
    """Its unix socket, for clients that do not keep to HTTP/2."""
    http_socket: Path | None = None
    http_key: str = field(default="", repr=False)
    pid: int | None = None
    """Its process, if this is the doctor's own."""
    log: Path | None = None

    async def lives(self) -> bool:
        """Tells whether it still answers, within 20 s."""
        try:
            await self.stubs.system.GetInfo(system_pb.GetInfoRequest(), timeout=ANSWER_S)
        except grpc.aio.AioRpcError:
            return False
        return True

    def memory_bytes(self) -> int | None:
        """Returns how much memory it has; ``None`` if that cannot be seen."""
        return None if self.pid is None else host_view.resident_bytes(self.pid)

    async def log_has(self, text: str) -> bool | None:
        """Tells whether a text stands in its log; ``None`` if that cannot be seen."""
        return None if self.log is None else text.encode() in await asyncio.to_thread(self.log.read_bytes)


@asynccontextmanager
async def channel_to(address: str, environ: Mapping[str, str] = os.environ) -> AsyncIterator[grpc.aio.Channel]:
    """Opens a channel to ``unix:/path``, ``host:port`` or ``https://host:port``.

    ``MS_ENCLAVE_TOKEN`` is sent with every call, and never in plain text to another machine; ``MS_ENCLAVE_CA`` names
    the certificates to trust. Raises `BadAddress`.
    """
    token = environ.get(TOKEN_VARIABLE, "").strip()
    if address.startswith("https://"):
        roots = await asyncio.to_thread(_roots, environ.get(CA_VARIABLE, ""))
        target = address.removeprefix("https://").rstrip("/")
        channel = grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(roots), options=_OPTIONS)
    else:
        if not address.startswith("unix:") and ":" not in address:
            raise BadAddress(f"{address!r} is no address; write unix:/path/to/socket, host:port or https://host:port")
        if not address.startswith("unix:") and token and not _is_of_this_machine(address):
            raise BadAddress(f"the token of {TOKEN_VARIABLE} is not sent to {address} in plain text; use https://")
        target = f"unix:{quote(address.removeprefix('unix:'))}" if address.startswith("unix:") else address
        channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
    async with channel:
        yield cast("grpc.aio.Channel", _Signed(channel, token)) if token else channel


class _Signed:
    """A channel every call of which carries a token."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel, self._metadata = channel, (("authorization", f"Bearer {token}"),)

    def __getattr__(self, kind: str) -> Any:
        make = getattr(self._channel, kind)
        if kind not in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            return make

        def signed(*arguments: Any, **options: Any) -> Any:
            method = make(*arguments, **options)

            def call(*given: Any, metadata: Any = (), **more: Any) -> Any:
                return method(*given, metadata=(*(metadata or ()), *self._metadata), **more)

            return call

        return signed


def _is_of_this_machine(address: str) -> bool:
    """Whether only this machine is at an address: a name may begin as a loopback address does, and be anybody's."""
    try:
        return is_loopback(parse_address(address))
    except ValueError as error:
        raise BadAddress(f"{address!r} is no address; write unix:/path/to/socket or https://host:port") from error


def _roots(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise BadAddress(f"the certificates of {CA_VARIABLE} cannot be read: {error.strerror}: {path}") from error
