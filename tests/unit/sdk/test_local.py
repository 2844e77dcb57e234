"""Where the SDK looks for a daemon."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from ms_enclave import _local as local
from ms_enclave._embedded import EmbeddedDaemon
from ms_enclave._local import ADDRESS_VARIABLE, Daemons, parse_address
from ms_enclave.errors import InvalidRequest

from tests.unit.sdk.fake_daemon import FakeDaemon, served


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedded daemon that is never really started."""
    monkeypatch.setattr(EmbeddedDaemon, "ensure", lambda self: "unix:/embedded.sock")


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("unix:///run/x.sock", "unix:/run/x.sock"),
        ("/run/x.sock", "unix:/run/x.sock"),
        ("127.0.0.1:50061", "127.0.0.1:50061"),
        ("daemon.example:443", "daemon.example:443"),
        ("[::1]:50061", "[::1]:50061"),
        ("https://daemon.example:443", "https://daemon.example:443"),
        ("https://[::1]:50061/", "https://[::1]:50061"),
    ],
)
def test_an_address_is_a_socket_or_a_host_and_port(text: str, target: str) -> None:
    assert parse_address(text, "address") == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "localhost",
        "host:0",
        "host:70000",
        "unix:x.sock",
        "unix:123",
        "http://host:1",
        "https://host",
        "https://h:1/x",
        "a b:1",
        "/" + "x" * 107,
        "/a\0b",
    ],
)
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{ADDRESS_VARIABLE}: "):
        parse_address(text, ADDRESS_VARIABLE)


async def test_an_argument_goes_before_everything(monkeypatch: pytest.MonkeyPatch, embedded: None) -> None:
    monkeypatch.setenv(ADDRESS_VARIABLE, "host:1")
    assert (await Daemons().connect("/argument.sock")).address == "unix:/argument.sock"


async def test_the_environment_goes_before_the_system(
    monkeypatch: pytest.MonkeyPatch, embedded: None, tmp_path: Path
) -> None:
    monkeypatch.setenv(ADDRESS_VARIABLE, "host:1")
    with served(FakeDaemon(), tmp_path / "system.sock"):
        assert (await Daemons(tmp_path / "system.sock").connect()).address == "host:1"


async def test_the_system_goes_before_one_of_our_own(embedded: None, tmp_path: Path) -> None:
    with served(FakeDaemon(), tmp_path / "system.sock"):
        found = await Daemons(tmp_path / "system.sock").connect()
        assert found.address == f"unix:{tmp_path / 'system.sock'}"
        assert (await found.health()).healthy


async def test_a_system_that_does_not_answer_is_passed_over(embedded: None, tmp_path: Path) -> None:
    path = tmp_path / "system.sock"
    assert (await Daemons(path).connect()).address == "unix:/embedded.sock"
    path.write_text("no socket")
    assert (await Daemons(path).connect()).address == "unix:/embedded.sock"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(path))
    assert (await Daemons(path).connect()).address == "unix:/embedded.sock"


async def test_a_wrong_address_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS_VARIABLE, "somewhere")
    with pytest.raises(ValueError, match="MS_ENCLAVE_ADDRESS: 'somewhere' is no address"):
        await Daemons().connect()


async def test_there_is_one_transport_for_each_address(embedded: None) -> None:
    daemons = Daemons(Path("/nonexistent"))
    assert await daemons.connect() is await daemons.connect()
    assert await daemons.connect("/a") is not await daemons.connect("/b")
    assert await daemons.connect("/a") is not await daemons.connect("/a", request_timeout_s=5)


def test_the_process_has_one_set_of_daemons() -> None:
    assert local.process_daemons() is local.process_daemons()
