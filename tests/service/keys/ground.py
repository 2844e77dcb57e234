"""Daemons that need tokens, and what calls them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import grpc
from grpc import aio
from ms_enclave.v1 import execution_service_pb2_grpc, sandbox_service_pb2_grpc, system_service_pb2_grpc

from enclaved.config import Settings
from enclaved.core.tokens import TokenStore
from tests.service.daemons import Running, settings_in

CERTIFICATES = Path(__file__).parents[1] / "certificates"
CA = (CERTIFICATES / "ca.crt").read_bytes()
LOOPBACK = "127.0.0.1:0"


def locked(folder: Path, **flags: str) -> Settings:
    """Settings of a daemon whose TCP port needs tokens."""
    return settings_in(folder, **{"listen__tcp": LOOPBACK, "listen__tcp_auth": "required", **flags})


def with_certificate(folder: Path, name: str = "first", **flags: str) -> Settings:
    """Settings of a daemon that speaks TLS, with a certificate that `put` can replace."""
    put(folder, name)
    return locked(folder, tls__cert=f"{folder}/tls.crt", tls__key=f"{folder}/tls.key", **flags)


def put(folder: Path, name: str, *, key: str = "") -> None:
    """Puts a certificate in the daemon's place, each file at once."""
    for suffix, source in (("crt", name), ("key", key or name)):
        shutil.copy(CERTIFICATES / f"{source}.{suffix}", folder / f"new.{suffix}")
        (folder / f"new.{suffix}").replace(folder / f"tls.{suffix}")


def token(settings: Settings, name: str = "ci", **given: Any) -> str:
    """Makes a token as the command does, from another connection."""
    store = TokenStore(Path(settings.state.dir))
    try:
        return store.create(name, **given)[0]
    finally:
        store.close()


def revoke(settings: Settings, name: str) -> None:
    """Revokes tokens as the command does."""
    store = TokenStore(Path(settings.state.dir))
    try:
        store.revoke(name)
    finally:
        store.close()


def shown(secret: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with a token."""
    return (("authorization", f"Bearer {secret}"),) if secret is not None else ()


def tls_channel(running: Running, ca: bytes = CA, host: str = "localhost") -> aio.Channel:
    """A channel to a daemon's port over TLS."""
    port = running.addresses.tcp.rpartition(":")[2]
    return aio.secure_channel(f"{host}:{port}", grpc.ssl_channel_credentials(ca))


def system(channel: aio.Channel) -> Any:
    """The service that says what a daemon is."""
    given: Any = channel
    return system_service_pb2_grpc.SystemServiceStub(given)


def executions(channel: aio.Channel) -> Any:
    """The service of executions."""
    given: Any = channel
    return execution_service_pb2_grpc.ExecutionServiceStub(given)


def sandboxes(channel: aio.Channel) -> Any:
    """The service of sandboxes."""
    given: Any = channel
    return sandbox_service_pb2_grpc.SandboxServiceStub(given)
