"""TLS of the listeners: who is refused before a call, and certificates that change while a daemon runs."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import aiohttp
import grpc
import pytest
from grpc import aio
from ms_enclave._transports.credentials import CA_VARIABLE, TOKEN_VARIABLE
from ms_enclave.errors import DaemonUnavailable, InvalidRequest, Unauthenticated
from ms_enclave.sandbox import HttpSandboxManager, LocalSandboxManager
from ms_enclave.v1.system_service_pb2 import GetInfoRequest

from enclaved.config import ConfigError
from enclaved.daemon import Reloads, StartError
from enclaved.daemon._tls import Certificates, Unusable, _not_after_s
from enclaved.metrics import Metrics
from tests.service.daemons import PATIENCE_S, Running, daemon, settings_in
from tests.service.keys.ground import (
    CA,
    CERTIFICATES,
    locked,
    put,
    shown,
    system,
    tls_channel,
    token,
    with_certificate,
)

ENDS = {"first": 4_733_510_400.0, "second": 2_493_072_000.0, "expired": 1_609_459_200.0}


async def presented(address: str, tls: ssl.SSLContext | None = None) -> bytes:
    """The certificate that a listener shows, whoever signed it."""
    context = tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(PATIENCE_S):
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
    return found


def der(name: str) -> bytes:
    """A certificate as it is presented."""
    return ssl.PEM_cert_to_DER_cert((CERTIFICATES / f"{name}.crt").read_text())


async def test_a_token_over_tls_opens_the_port(folder: Path):
    settings = with_certificate(folder)
    secret = token(settings)
    async with daemon(settings) as running, tls_channel(running) as channel:
        assert (await system(channel).GetInfo(GetInfoRequest(), metadata=shown(secret))).identity.name == "ci"


@pytest.mark.parametrize(
    ("certificate", "ca"),
    [
        pytest.param("first", "stranger", id="the wrong authority"),
        pytest.param("expired", "ca", id="an expired certificate"),
        pytest.param("elsewhere", "ca", id="another name in it"),
    ],
)
async def test_a_client_refuses_a_daemon_that_it_cannot_trust(folder: Path, certificate: str, ca: str):
    settings = with_certificate(folder, certificate)
    trusted = (CERTIFICATES / f"{ca}.crt").read_bytes()
    async with daemon(settings) as running, tls_channel(running, trusted) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await system(channel).GetInfo(GetInfoRequest(), timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "CERTIFICATE_VERIFY_FAILED" in (caught.value.details() or "") or "Hostname" in (caught.value.details() or "")


async def test_plaintext_and_old_tls_are_refused_and_1_3_is_preferred(folder: Path):
    settings = with_certificate(folder, listen__http="127.0.0.1:0")
    async with daemon(settings) as running:
        async with aio.insecure_channel(running.addresses.tcp) as channel:
            with pytest.raises(aio.AioRpcError) as caught:
                await system(channel).GetInfo(GetInfoRequest(), timeout=PATIENCE_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        for address in (running.addresses.tcp, running.addresses.http):
            old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
            old.set_ciphers("DEFAULT:@SECLEVEL=0")
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await presented(address, old)
            new = ssl.create_default_context(cadata=CA.decode())
            new.set_alpn_protocols(["h2", "http/1.1"])
            host, _, port = address.rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port), ssl=new)
            assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
            writer.transport.abort()


async def test_a_changed_certificate_counts_without_a_restart_on_every_listener(folder: Path):
    settings = with_certificate(folder, listen__http="127.0.0.1:0")
    secret = token(settings)
    reloads = Reloads(lambda: settings)
    async with daemon(settings, reloads=reloads) as running, tls_channel(running) as before:
        addresses = (running.addresses.tcp, running.addresses.http)
        assert {await presented(address) for address in addresses} == {der("first")}
        get_info = system(before).GetInfo
        await get_info(GetInfoRequest(), metadata=shown(secret))
        put(folder, "second")
        await reloaded(running, reloads, "ok")
        assert {await presented(address) for address in addresses} == {der("second")}
        await get_info(GetInfoRequest(), metadata=shown(secret))  # the old connection goes on
        async with tls_channel(running) as after:
            await system(after).GetInfo(GetInfoRequest(), metadata=shown(secret))


async def reloaded(running: Running, reloads: Reloads, outcome: str) -> None:
    """Asks for a reload, as SIGHUP does, and waits until the certificate was looked at."""
    reloads.ask("the test")
    async with asyncio.timeout(PATIENCE_S):
        while f'enclaved_tls_reloads_total{{outcome="{outcome}"}} 0.0' in (await running.get("/metrics"))[1]:
            pass


@pytest.mark.parametrize(
    ("certificate", "key"),
    [
        pytest.param("second", "first", id="the key of another"),
        pytest.param("expired", "", id="expired"),
    ],
)
async def test_a_bad_new_certificate_leaves_the_old_one_in_use(
    folder: Path, certificate: str, key: str, caplog: pytest.LogCaptureFixture
):
    settings = with_certificate(folder, listen__http="127.0.0.1:0")
    reloads = Reloads(lambda: settings)
    async with daemon(settings, reloads=reloads) as running:
        put(folder, certificate, key=key)
        await reloaded(running, reloads, "error")
        for address in (running.addresses.tcp, running.addresses.http):
            assert await presented(address) == der("first")
    assert "certificate not reloaded; the one before stays in use" in caplog.text


def test_files_that_change_are_seen_and_good_again(folder: Path, caplog: pytest.LogCaptureFixture):
    put(folder, "first")
    metrics = Metrics(version="0")
    certificates = Certificates(folder / "tls.crt", folder / "tls.key", metrics)
    gauge = "enclaved_tls_certificate_not_after_timestamp_seconds"
    assert metrics.value(gauge) == ENDS["first"]
    (folder / "tls.key").unlink()
    assert not certificates.reload()
    (folder / "tls.key").write_bytes(b"x" * 2_000_000)
    assert not certificates.reload()
    (folder / "tls.key").write_text("no key")
    assert not certificates.reload()
    assert metrics.value(gauge) == ENDS["first"]
    put(folder, "second")
    assert certificates.reload()
    assert certificates.reload()
    assert metrics.value(gauge) == ENDS["second"]
    counted = {name: metrics.value("enclaved_tls_reloads_total", outcome=name) for name in ("ok", "error")}
    assert counted == {"ok": 1.0, "error": 3.0}


async def test_a_change_is_found_without_being_told(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("enclaved.daemon._tls.LOOK_EVERY_S", 0)
    put(folder, "first")
    certificates = Certificates(folder / "tls.crt", folder / "tls.key", Metrics(version="0"))
    seen = asyncio.Event()
    look = certificates.reload

    def reload() -> bool:
        if look():
            seen.set()
        return certificates.pair.not_after_s == ENDS["second"]

    monkeypatch.setattr(certificates, "reload", reload)
    watching = asyncio.create_task(certificates.watch())
    put(folder, "second")
    async with asyncio.timeout(PATIENCE_S):
        await seen.wait()
    watching.cancel()
    assert certificates.pair.not_after_s == ENDS["second"]


async def test_a_server_of_a_program_of_ones_own_gets_new_certificates_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("enclaved.daemon._tls.LOOK_EVERY_S", 0.01)
    settings = with_certificate(folder, listen__tcp="", listen__tcp_auth="auto", listen__http="127.0.0.1:0")
    async with daemon(settings, embedded=True) as running, asyncio.timeout(PATIENCE_S):
        assert await presented(running.addresses.http) == der("first")
        put(folder, "second")
        while await presented(running.addresses.http) != der("second"):
            pass


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_a_certificate_is_read_from_it(name: str):
    path = CERTIFICATES / f"{name}.crt"
    assert _not_after_s(path.read_bytes(), path) == ENDS[name]


def test_a_certificate_that_is_cut_anywhere_makes_no_sense_and_does_no_harm():
    whole = der("first")
    for length in range(0, len(whole), 7):
        pem = ssl.DER_cert_to_PEM_cert(whole[:length]).encode()
        try:
            assert _not_after_s(pem, Path("x")) == ENDS["first"]
        except Unusable as error:
            assert "makes no sense" in str(error)  # noqa: PT017 - either is right, depending on where it was cut


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"listen__tcp": "0.0.0.0:50061"}, "listen.tcp must be a loopback address"),
        ({"listen__tcp": "box.example:50061"}, "set tls.cert and tls.key, or tls.behind_proxy"),
        ({"listen__metrics": "0.0.0.0:9464"}, "listen.metrics must be a loopback address"),
        ({"tls__cert": "/x.crt"}, "tls.key is empty; a certificate and its key go together"),
        ({"tls__key": "/x.key"}, "tls.cert is empty; a certificate and its key go together"),
        ({"tls__cert": "x.crt", "tls__key": "/x.key"}, "tls.cert must be an absolute path"),
        ({"tls__cert": "/x", "tls__key": "/x", "tls__behind_proxy": "true"}, "choose one"),
    ],
)
def test_listeners_that_would_show_tokens_to_others_are_refused(flags: dict[str, str], problem: str):
    with pytest.raises(ConfigError, match=problem):
        settings_in(Path("/tmp/x"), **flags)


async def test_a_certificate_without_names_is_refused_since_some_clients_take_it_for_any(folder: Path):
    with pytest.raises(StartError, match="has no name of the daemon"):
        async with daemon(with_certificate(folder, "nameless")):
            pass


@pytest.mark.parametrize("key", ["second.key", "nothing.key"])
async def test_a_daemon_does_not_start_without_the_certificate_that_it_needs(folder: Path, key: str):
    files = {"tls__cert": str(CERTIFICATES / "first.crt"), "tls__key": str(CERTIFICATES / key)}
    with pytest.raises(StartError, match=r"cannot use the certificate: .*; look at tls.cert and tls.key"):
        async with daemon(locked(folder, **files)):
            pass


async def test_a_daemon_does_not_start_with_tokens_that_others_may_write(folder: Path):
    settings = locked(folder)
    token(settings)
    (folder / "state" / "tokens.sqlite3").chmod(0o666)
    with pytest.raises(StartError, match="chmod 600"):
        async with daemon(settings):
            pass


# -- the SDK


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who trusts our authority."""
    monkeypatch.setenv(CA_VARIABLE, str(CERTIFICATES / "ca.crt"))


async def test_the_sdk_calls_over_tls_with_a_token_of_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, trusting: None
):
    settings = with_certificate(folder, listen__http="127.0.0.1:0", listen__http_auth="required")
    secret = token(settings)
    async with daemon(settings) as running:
        monkeypatch.setenv(TOKEN_VARIABLE, secret)
        async with LocalSandboxManager(address=f"https://{running.addresses.tcp}") as manager:
            sandbox_id = await manager.create_sandbox("docker", {})
            result = await manager.execute_tool(sandbox_id, "python_executor", {"code": "print(6 * 7)"})
            assert (result.output or "").strip() == "42"
        async with HttpSandboxManager(base_url=f"https://{running.addresses.http}") as manager:
            assert await manager.list_sandboxes() == []


async def test_the_sdk_says_what_to_do_without_a_token_and_without_trust(folder: Path, monkeypatch: pytest.MonkeyPatch):
    settings = with_certificate(folder, listen__http="127.0.0.1:0", listen__http_auth="required")
    async with daemon(settings) as running:
        with pytest.raises(DaemonUnavailable, match=r"no trusted connection to https://.*set MS_ENCLAVE_CA"):
            await LocalSandboxManager(address=f"https://{running.addresses.tcp}").start()
        with pytest.raises(DaemonUnavailable, match=r"no trusted connection to https://.*MS_ENCLAVE_CA"):
            await started(HttpSandboxManager(base_url=f"https://{running.addresses.http}"))
        monkeypatch.setenv(CA_VARIABLE, str(CERTIFICATES / "ca.crt"))
        for secret in (None, "mse_wrong"):
            with pytest.raises(Unauthenticated, match=r"MS_ENCLAVE_TOKEN.*'enclaved token create NAME' makes one"):
                await LocalSandboxManager(address=f"https://{running.addresses.tcp}", token=secret).start()
            with pytest.raises(Unauthenticated, match="send a key or a token"):
                await started(HttpSandboxManager(base_url=f"https://{running.addresses.http}", api_key=secret))


async def started(manager: HttpSandboxManager) -> None:
    """Starts a manager, and ends it."""
    try:
        await manager.start()
    finally:
        await manager.stop()


@pytest.mark.parametrize("address", ["box.example:50061", "192.0.2.1:50061", "[2001:db8::1]:1", "localhost.example:1"])
async def test_a_token_never_travels_in_the_open(address: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InvalidRequest, match=r"token: is not sent to .*write https://"):
        await LocalSandboxManager(address=address, token="mse_secret").start()
    with pytest.raises(InvalidRequest, match="api_key: a token is not sent to http://"):
        HttpSandboxManager(base_url=f"http://{address}", api_key="mse_secret")
    monkeypatch.setenv(TOKEN_VARIABLE, "mse_secret")
    with pytest.raises(InvalidRequest) as caught:
        await LocalSandboxManager(address=address).start()
    assert "mse_secret" not in str(caught.value)


async def test_metrics_beyond_loopback_need_a_token_of_who_may_watch(folder: Path):
    """On loopback here, with a door that is closed as it would be elsewhere."""
    settings = with_certificate(folder)
    watcher, other = token(settings, "watcher", role="monitor"), token(settings)
    elsewhere = settings.model_copy(update={"listen": settings.listen.model_copy(update={"metrics": "0.0.0.0:0"})})
    async with daemon(elsewhere) as running, aiohttp.ClientSession() as session:
        port = running.addresses.metrics.rpartition(":")[2]
        trusted = ssl.create_default_context(cadata=CA.decode())

        async def get(path: str, secret: str | None) -> tuple[int, str]:
            headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
            async with session.get(f"https://localhost:{port}{path}", ssl=trusted, headers=headers) as answer:
                return answer.status, await answer.text()

        for path in ("/metrics", "/healthz", "/readyz", "/nothing"):
            status, text = await get(path, None)
            assert (status, "enclaved_" in text) == (401, False)
            assert (await get(path, "mse_x"))[0] == 401
        assert (await get("/metrics", other))[0] == 403
        assert (await get("/healthz", other)) == (200, "ok\n")
        status, text = await get("/metrics", watcher)
        assert (status, 'enclaved_auth_failures_total{listener="metrics"} 8.0' in text) == (200, True)
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://localhost:{port}/metrics")
