"""Client attacks against daemons that are none: one that grants everything, one that fails, one that is away."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.doctor.act import Act
from enclaved.doctor.attacks import clients, requests
from enclaved.doctor.attacks.base import Attack, Outcome, judge
from enclaved.doctor.connection import BadAddress, Daemon, Stubs, channel_to

Answering = Callable[[str, bytes], bytes]

ASKING = [attack for attack in requests.ATTACKS if attack.id not in ("clients.images", "clients.unknown-fields")]
MADE = sandbox_pb.CreateSandboxResponse(sandbox=sandbox_pb.Sandbox(id="made")).SerializeToString()


class Handler(grpc.GenericRpcHandler):
    """Answers every unary call with what a function says of it."""

    def __init__(self, answer: Answering, status: grpc.StatusCode) -> None:
        self._answer, self._status = answer, status
        self.metadata: list[dict[str, Any]] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Returns what answers a method."""
        method = handler_call_details.method
        self.metadata.append(dict(handler_call_details.invocation_metadata))

        async def answer(request: bytes, context: Any) -> bytes:
            if self._status is not grpc.StatusCode.OK:
                await context.abort(self._status, "no")
            return self._answer(method, request)

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def a_daemon(status: grpc.StatusCode = grpc.StatusCode.OK) -> AsyncIterator[tuple[Act, Handler, str]]:
    """Serves on a socket, and yields a client that is to attack it."""
    directory = Path(tempfile.mkdtemp(prefix="mse-", dir="/tmp"))
    handler = Handler(lambda method, _: MADE if method.endswith("/CreateSandbox") else b"", status)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{directory}/d.sock")
    await server.start()
    try:
        address = f"unix:{directory}/d.sock"
        async with channel_to(address, {}) as channel:
            daemon = Daemon(channel, Stubs(channel), socket_path=directory / "d.sock")
            yield Act(daemon, "nonce", {"nonce": "nonce"}, sandbox_pb.SandboxSpec(), "made"), handler, address
    finally:
        await server.stop(None)
        shutil.rmtree(directory)


async def outcome(attack: Attack, status: grpc.StatusCode = grpc.StatusCode.OK) -> Outcome:
    """Plays an attack against a daemon that answers everything alike."""
    assert attack.act is not None
    async with a_daemon(status) as (act, _, _):
        seen = await attack.act(act)
        await act.close()
    return judge(attack, replace(seen, works=True, neighbour_works=True, memory_growth_bytes=0)).outcome


@pytest.mark.parametrize("attack", ASKING, ids=lambda attack: attack.id)
async def test_a_daemon_that_grants_everything_is_seen(attack: Attack) -> None:
    assert await outcome(attack) is Outcome.ESCAPED


@pytest.mark.parametrize("attack", ASKING, ids=lambda attack: attack.id)
async def test_a_daemon_that_fails_at_everything_is_seen(attack: Attack) -> None:
    assert await outcome(attack, grpc.StatusCode.INTERNAL) is Outcome.ESCAPED


@pytest.mark.parametrize("attack", ASKING, ids=lambda attack: attack.id)
async def test_a_daemon_that_is_away_proves_nothing(attack: Attack) -> None:
    assert await outcome(attack, grpc.StatusCode.UNAVAILABLE) is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("attack", ASKING, ids=lambda attack: attack.id)
async def test_a_daemon_that_refuses_contains_them(attack: Attack) -> None:
    assert await outcome(attack, grpc.StatusCode.PERMISSION_DENIED) is Outcome.CONTAINED


async def test_a_daemon_that_fails_at_odd_messages_is_seen() -> None:
    attack = next(attack for attack in clients.ATTACKS if attack.id == "clients.mutated-messages")

    assert await outcome(attack, grpc.StatusCode.UNKNOWN) is Outcome.ESCAPED


async def test_an_unknown_sandbox_that_is_known_is_seen() -> None:
    attack = next(attack for attack in clients.ATTACKS if attack.id == "clients.unknown-sandbox")

    assert await outcome(attack) is Outcome.ESCAPED
    assert await outcome(attack, grpc.StatusCode.NOT_FOUND) is Outcome.CONTAINED


async def test_a_token_goes_with_every_call() -> None:
    async with a_daemon() as (_, handler, address), channel_to(address, {"MS_ENCLAVE_TOKEN": "mse_x"}) as channel:
        await Stubs(channel).sandboxes.ListSandboxes(sandbox_pb.ListSandboxesRequest(), metadata=(("a", "b"),))

    assert handler.metadata[-1]["authorization"] == "Bearer mse_x"
    assert handler.metadata[-1]["a"] == "b"


@pytest.mark.parametrize(
    "address",
    [
        "nonsense",
        "10.0.0.1:50061",
        "example.invalid:1",
        "127.example.invalid:1",
        "127.0.0.1.example.invalid:1",
        "localhost.example.invalid:1",
        "dns:///127.0.0.1:1",
        "127.0.0.1:x",
    ],
)
async def test_a_token_is_not_sent_in_plain_text_to_another_machine(address: str) -> None:
    with pytest.raises(BadAddress):
        async with channel_to(address, {"MS_ENCLAVE_TOKEN": "mse_x"}):
            pass
