"""``ms-enclave info``, at a daemon made of dictionaries."""

from __future__ import annotations

import json

import pytest
from ms_enclave.v1 import system_service_pb2 as system_pb

from tests.unit.cli.test_making import daemon, run
from tests.unit.sdk.fake_daemon import FakeDaemon

__all__ = ["daemon"]

SEEN = system_pb.Protection(name="capabilities", state=system_pb.Protection.STATE_EFFECTIVE, detail="they have none")
FAILED = system_pb.Protection(name="no_network", state=system_pb.Protection.STATE_FAILED, detail="there is eth0")


def test_a_daemon_says_what_protects_the_host_and_who_we_are(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.protections = [SEEN]
    assert run("info") == 0
    shown = capsys.readouterr().out
    assert "you: ci, role grader (token)" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith("capabilities")] == [
        ["capabilities", "effective", "they", "have", "none"]
    ]


def test_a_protection_that_failed_is_an_exit_code(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.protections = [SEEN, FAILED]
    assert run("info", "--json") == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["protections"]["no_network"] == {"state": "failed", "detail": "there is eth0"}
    assert shown["identity"] == {"name": "ci", "role": "grader", "tenant": "", "kind": "token"}
