"""``create``, ``start`` and ``stop``, at a daemon made of dictionaries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ms_enclave import cli
from ms_enclave._cli import options
from ms_enclave._local import ADDRESS_VARIABLE, Daemons
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from tests.unit.sdk.fake_daemon import FakeDaemon, served


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    made, path = FakeDaemon(), tmp_path / "d.sock"
    monkeypatch.setenv(ADDRESS_VARIABLE, f"unix:{path}")
    daemons = Daemons(tmp_path / "none.sock")
    monkeypatch.setattr(options, "process_daemons", lambda: daemons)
    with served(made, path):
        yield made


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_all_that_is_asked_for_reaches_the_daemon(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PASSED_ON", "ours")
    limits = ("--memory", "1g", "--cpus", "0.5", "--pids", "50", "--ttl", "3600", "--idle-timeout", "60")
    rest = ("--label", "team=a=b", "-e", "X=1", "-e", "PASSED_ON", "--keep", "--request-id", "job-17")
    assert run("create", "box", "--image", "python:3.12-slim", *limits, *rest) == 0
    assert capsys.readouterr().out == "box\n"
    (request,) = daemon.asked(sandbox_pb.CreateSandboxRequest)
    spec = request.spec
    assert (request.sandbox_id, request.request_id, dict(request.labels)) == ("box", "job-17", {"team": "a=b"})
    assert (spec.image, spec.memory_limit_bytes, spec.cpu_limit) == ("python:3.12-slim", 2**30, 0.5)
    assert (spec.pids_limit, spec.ttl_s, spec.idle_timeout_s) == (50, 3600, 60)
    assert (dict(spec.env_vars), spec.remove_on_exit) == ({"X": "1", "PASSED_ON": "ours"}, False)


def test_what_only_a_policy_grants_can_be_asked_for(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    volumes = ("--volume", "/data:/in", "-v", "out:/out:rw")
    ports = ("-p", "8080", "--publish", "9000:80/tcp", "-p", "53/udp")
    rest = ("--add-host", "db:10.0.0.1", "--runtime-class", "runsc", "--command", "serve --on 'a b'")
    assert run("create", "box", "--network", *volumes, *ports, *rest) == 0
    (request,) = daemon.asked(sandbox_pb.CreateSandboxRequest)
    spec = request.spec
    assert (spec.network_enabled, spec.runtime_class, list(spec.command)) == (True, "runsc", ["serve", "--on", "a b"])
    assert {(v.host_path, v.bind, v.mode) for v in spec.volumes} == {("/data", "/in", "ro"), ("/out", "/out", "rw")}
    assert {(p.container_port, p.host_port) for p in spec.ports} == {("8080/tcp", 0), ("80/tcp", 9000), ("53/udp", 0)}
    assert dict(spec.extra_hosts) == {"db": "10.0.0.1"}


def test_what_is_not_asked_for_is_left_to_the_daemon(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("create", "--json") == 0
    assert json.loads(capsys.readouterr().out)["status"] == "running"
    (request,) = daemon.asked(sandbox_pb.CreateSandboxRequest)
    assert (request.sandbox_id, request.spec, len(request.request_id)) == ("", sandbox_pb.SandboxSpec(), 32)


def test_the_same_request_id_is_the_same_sandbox(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert [run("create", "box", "--request-id", "job-17") for _ in range(2)] == [0, 0]
    assert run("create", "box") == 1
    shown = capsys.readouterr()
    assert (shown.out, list(daemon.sandboxes)) == ("box\nbox\n", ["box"])
    assert "exists already" in shown.err


def test_without_a_daemon_that_stays_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    monkeypatch.setattr(options, "process_daemons", lambda: Daemons(tmp_path / "none.sock"))
    assert run("create", "box") == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert shown.err.startswith("ms-enclave: nothing would keep the sandbox after this command: no daemon runs")
    assert shown.err.endswith("'enclaved run' starts one, and --address names another one\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--memory", "much"), "--memory: Invalid memory limit format"),
        (("--cpu", "-1"), "--cpu: CPU limit must be positive"),
        (("--ttl", "-1"), "--ttl: ttl must be positive"),
        (("--ttl", "inf"), "--ttl: ttl must be a number"),
        (("--idle-timeout", "-1"), "--idle-timeout: idle_timeout must be positive"),
        (("--pids", "0"), "--pids: pids_limit must be positive"),
        (("--label", "x"), "--label: must look like NAME=VALUE"),
        (("--image", ""), "--image: "),
        (("--volume", "data"), "--volume: 'data' must look like /data/set:/data or ./out:/out:rw"),
        (("--volume", "/a:b"), "--volume: '/a:b' must look like"),
        (("--volume", "/a:/b:x"), "--volume: '/a:/b:x' must look like"),
        (("-v", "/a:/b", "-v", "/a:/c"), "/a is named twice"),
        (("--publish", "http"), "--publish: 'http' must look like 8080, 9000:8080 or 5353/udp"),
        (("--publish", "99999:80"), "--publish: "),
        (("--add-host", "db"), "--add-host: 'db' must look like db:192.0.2.7"),
        (("a", "b"), "Got unexpected extra argument (b)"),
    ],
)
def test_a_mistake_names_its_option(
    arguments: tuple[str, ...], said: str, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("create", *arguments) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n"), daemon.requests) == ("", 1, [])
    assert shown.err.startswith(f"ms-enclave: {said}")
    assert shown.err.endswith("(try ms-enclave create --help)\n")


def test_sandboxes_are_stopped_and_started_again(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert [run("create", name) for name in ("one", "two")] == [0, 0]
    capsys.readouterr()
    assert run("stop", "one", "two", "one") == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert run("start", "one", "--json") == 0
    assert [(each["id"], each["status"]) for each in json.loads(capsys.readouterr().out)] == [("one", "running")]
    assert daemon.sandboxes["two"].state == sandbox_pb.Sandbox.STATE_STOPPED
    assert run("start", "nobody") == 1
    assert run("stop") == 2
