"""Who may call over gRPC where tokens are needed, what they may call, and until when."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1.system_service_pb2 import GetInfoRequest

from enclaved import services
from enclaved.core.access import METHODS
from enclaved.core.tokens.live import INVALID
from enclaved.model import Scope
from tests.service.daemons import PATIENCE_S, Running, daemon, python, settings_in
from tests.service.edge import serving
from tests.service.keys.ground import executions, locked, revoke, sandboxes, shown, system, token

WRONG = ("", "x", "mse_", "mse_" + "A" * 43, "Bearer", "é", "x" * 4000, "sha256:" + "0" * 64)


def over_tcp(running: Running) -> aio.Channel:
    """A plain channel to the daemon's port."""
    return aio.insecure_channel(running.addresses.tcp)


async def refusal(call: object) -> tuple[grpc.StatusCode, str]:
    """How a call was refused."""
    with pytest.raises(aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), caught.value.details() or ""


def failures(running: Running, text: str, listener: str = "tcp") -> float:
    """How many calls a listener refused, as a scrape says."""
    found = re.search(rf'^enclaved_auth_failures_total{{listener="{listener}"}} (\S+)$', text, re.MULTILINE)
    assert found
    return float(found[1])


async def test_every_secret_that_opens_nothing_hears_the_same_and_is_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("DEBUG")
    settings = locked(folder)
    gone = token(settings, "gone")
    late = token(settings, "late", lifetime_s=1.0, now=1.0)
    async with daemon(settings) as running, over_tcp(running) as channel:
        revoke(settings, "gone")
        calls = [
            *[shown(secret) for secret in (None, gone, late, *WRONG) if secret is None or secret.isascii()],
            (("authorization", "Basic eDp4"),),
            (("x-api-key", "x"),),
            (("authorization", "Bearer x"), ("authorization", "Bearer y"), ("x-api-key", "z")),
        ]
        heard = {await refusal(system(channel).GetInfo(GetInfoRequest(), metadata=metadata)) for metadata in calls}
        assert heard == {(grpc.StatusCode.UNAUTHENTICATED, INVALID)}
        text = (await running.get("/metrics"))[1]
        assert failures(running, text) == len(calls)
    secrets = [secret for secret in (gone, late, *WRONG) if len(secret) > 8]
    said = caplog.text + repr([vars(record) for record in caplog.records])
    assert [secret for secret in secrets if secret in said] == []
    lines = [record for record in caplog.records if record.message == "callers without a valid token"]
    assert 1 <= len(lines) < len(calls)


async def test_a_valid_token_opens_the_port_whoever_else_fails(folder: Path):
    settings = locked(folder)
    good = token(settings)
    async with daemon(settings) as running, over_tcp(running) as channel:
        for _ in range(200):
            await refusal(system(channel).GetInfo(GetInfoRequest(), metadata=shown("mse_wrong")))
        for metadata in (shown(good), (("x-api-key", good),), (("authorization", f"bearer  {good}"),)):
            answer = await system(channel).GetInfo(GetInfoRequest(), metadata=metadata)
            assert (answer.identity.name, answer.identity.role) == ("ci", "default")


async def test_the_socket_of_the_machine_needs_no_token_beside_a_port_that_does(folder: Path):
    async with daemon(locked(folder)) as running:
        answer = await running.system_stub.GetInfo(GetInfoRequest())
        assert (answer.identity.name, answer.identity.role) == ("local", "default")


async def test_a_token_counts_on_the_socket_as_well_and_one_that_is_none_is_refused(folder: Path):
    settings = settings_in(folder)
    good = token(settings, "watcher", role="monitor")
    async with daemon(settings) as running:
        answer = await running.system_stub.GetInfo(GetInfoRequest(), metadata=shown(good))
        assert (answer.identity.name, answer.identity.role) == ("watcher", "monitor")
        code, _ = await refusal(running.system_stub.GetInfo(GetInfoRequest(), metadata=shown("mse_x")))
        assert code is grpc.StatusCode.UNAUTHENTICATED
        await running.system_stub.GetInfo(GetInfoRequest(), metadata=shown("of somebody else's service"))


async def test_loopback_needs_no_token_unless_it_is_said(folder: Path):
    async with daemon(settings_in(folder, listen__tcp="127.0.0.1:0")) as running, over_tcp(running) as channel:
        assert (await system(channel).GetInfo(GetInfoRequest())).identity.name == "local"


async def test_strangers_learn_nothing_from_health_reflection_or_methods_that_are_not_there(folder: Path):
    settings = locked(folder)
    good = token(settings)
    async with daemon(settings) as running, over_tcp(running) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")

        def all_calls(secret: str | None) -> list[object]:
            metadata = shown(secret)
            return [
                health.Check(health_pb2.HealthCheckRequest(), metadata=metadata),
                health.Watch(health_pb2.HealthCheckRequest(), metadata=metadata).read(),
                reflection.ServerReflectionInfo(iter([asked]), metadata=metadata).read(),
                channel.unary_unary("/grpc.channelz.v1.Channelz/GetServers")(b"", metadata=metadata),
                channel.unary_unary("/ms_enclave.v1.SandboxService/Nothing")(b"", metadata=metadata),
                channel.stream_stream("/no/such")(iter([b""]), metadata=metadata).read(),
            ]

        refused = [await refusal(call) for call in all_calls(None)]
        assert set(refused) == {(grpc.StatusCode.UNAUTHENTICATED, INVALID)}
        known = all_calls(good)
        assert (await known[0]).status == health_pb2.HealthCheckResponse.SERVING  # type: ignore[misc]
        assert (await known[1]).status == health_pb2.HealthCheckResponse.SERVING  # type: ignore[misc]
        assert (await known[2]).list_services_response.service  # type: ignore[misc]
        codes = {(await refusal(call))[0] for call in known[3:]}
        assert codes == {grpc.StatusCode.UNIMPLEMENTED}


async def test_a_role_without_a_scope_is_told_which(folder: Path):
    settings = locked(folder)
    watcher = token(settings, "watcher", role="monitor")
    unknown = token(settings, "unknown", role="nobody")
    async with daemon(settings) as running, over_tcp(running) as channel:
        stub = sandboxes(channel)
        assert not (await stub.ListSandboxes(sandbox_pb.ListSandboxesRequest(), metadata=shown(watcher))).sandboxes
        code, text = await refusal(
            stub.CreateSandbox(sandbox_pb.CreateSandboxRequest(sandbox_id="x"), metadata=shown(watcher))
        )
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "SandboxService.CreateSandbox needs the scope 'create', which the role of 'watcher' lacks" in text
        code, text = await refusal(stub.ListSandboxes(sandbox_pb.ListSandboxesRequest(), metadata=shown(unknown)))
        assert (code, "'nobody'" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)


async def test_who_may_only_read_observes_executions_and_does_not_take_their_output_away(folder: Path):
    settings = locked(folder)
    watcher, runner = token(settings, "watcher", role="monitor"), token(settings, "runner")
    async with daemon(settings) as running, over_tcp(running) as channel, asyncio.timeout(PATIENCE_S):
        await running.create()
        spec = python("print('once')", execution_id="e", detach=True)
        await running.execution_stub.Run(execution_pb.RunRequest(spec=spec))
        stub = executions(channel)
        code, text = await refusal(
            stub.Attach(execution_pb.AttachRequest(execution_id="e"), metadata=shown(watcher)).read()
        )
        assert (code, "needs the scope 'run'" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)
        for asked, secret in (({"observe": True}, watcher), ({}, runner)):
            request = execution_pb.AttachRequest(execution_id="e", **asked)
            events = [event async for event in stub.Attach(request, metadata=shown(secret))]
            assert b"".join(each.event.output.data for each in events) == b"once\n"


async def test_revocation_ends_a_stream_and_counts_with_the_next_call(folder: Path):
    settings = locked(folder)
    gone, stays = token(settings, "gone"), token(settings, "stays")
    async with daemon(settings) as running, over_tcp(running) as channel, asyncio.timeout(PATIENCE_S):
        stub = sandboxes(channel)
        watches = {
            secret: stub.WatchSandboxes(sandbox_pb.WatchSandboxesRequest(), metadata=shown(secret))
            for secret in (gone, stays)
        }
        for watch in watches.values():
            await watch.read()  # the bookmark: from here on nothing happens that could be told
        revoke(settings, "gone")
        get_info = system(channel).GetInfo
        assert (await refusal(get_info(GetInfoRequest(), metadata=shown(gone))))[1] == INVALID
        assert await refusal(watches[gone].read()) == (grpc.StatusCode.UNAUTHENTICATED, INVALID)
        await stub.CreateSandbox(sandbox_pb.CreateSandboxRequest(sandbox_id="box"), metadata=shown(stays))
        assert (await watches[stays].read()).sandbox.id == "box"


async def test_revocations_under_load_refuse_the_revoked_and_nobody_else(folder: Path):
    settings = locked(folder)
    secrets = {f"t{number}": token(settings, f"t{number}") for number in range(8)}
    async with daemon(settings) as running, over_tcp(running) as channel, asyncio.timeout(PATIENCE_S):
        outcomes: dict[str, list[grpc.StatusCode]] = {name: [] for name in secrets}

        async def call(name: str) -> None:
            try:
                await system(channel).GetInfo(GetInfoRequest(), metadata=shown(secrets[name]))
            except aio.AioRpcError as error:
                outcomes[name].append(error.code())
            else:
                outcomes[name].append(grpc.StatusCode.OK)

        for number in range(4):
            await asyncio.gather(*[call(name) for name in secrets for _ in range(10)])
            revoke(settings, f"t{number}")
        await asyncio.gather(*[call(name) for name in secrets for _ in range(10)])
    for number, (_, codes) in enumerate(sorted(outcomes.items())):
        allowed = 10 * min(number + 1, 5) if number < 4 else 50
        assert codes[:allowed] == [grpc.StatusCode.OK] * allowed
        assert set(codes[allowed:]) <= {grpc.StatusCode.UNAUTHENTICATED}


async def test_where_tokens_cannot_be_read_nobody_gets_in_and_the_socket_serves(folder: Path):
    settings = locked(folder)
    good = token(settings)
    database = Path(settings.state.dir) / "tokens.sqlite3"
    async with daemon(settings) as running, over_tcp(running) as channel:
        await system(channel).GetInfo(GetInfoRequest(), metadata=shown(good))
        database.chmod(0o644)
        code, text = await refusal(system(channel).GetInfo(GetInfoRequest(), metadata=shown(good)))
        assert (code, str(folder) in text) == (grpc.StatusCode.UNAVAILABLE, False)
        await running.system_stub.GetInfo(GetInfoRequest())
        database.chmod(0o600)
        await system(channel).GetInfo(GetInfoRequest(), metadata=shown(good))


def test_every_method_that_is_served_has_a_scope_and_no_other_has() -> None:
    """A method that somebody adds to the contract is closed until it stands in the table."""
    pool = descriptor_pool.Default()
    contract = [
        *(pool.FindServiceByName(f"ms_enclave.v1.{name}Service") for name in SERVICES),
        pool.FindServiceByName("grpc.health.v1.Health"),
        pool.FindServiceByName("grpc.reflection.v1alpha.ServerReflection"),
    ]
    there = {f"{service.name}.{method.name}" for service in contract for method in service.methods} - {"Health.List"}
    assert set(METHODS) == there | {"Metrics.Scrape"}
    assert set(METHODS.values()) == set(Scope)


SERVICES = ("Sandbox", "Execution", "Context", "Tool", "File", "Pool", "Image", "System")


def test_the_services_of_that_test_are_all_there_are() -> None:
    modules = Path(services.__file__).parent.glob("*_service.py")
    assert {path.stem.removesuffix("_service").title() for path in modules} == set(SERVICES)


async def test_a_method_that_is_served_and_not_listed_is_open_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {name: scope for name, scope in METHODS.items() if name != "SystemService.GetInfo"}
    monkeypatch.setattr("enclaved.core.access.METHODS", listed)
    async with serving() as edge:
        code, text = await refusal(edge.system_stub.GetInfo(GetInfoRequest()))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "SystemService.GetInfo is open to nobody" in text
