"""What ensure-engine does, and what it says when it may do nothing. No engine is started here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.loading import load

ensure_engine = load("ensure-engine")
console = load("_console")
debian = load("_debian")
engine_module = load("_engine")


class Machine:
    """A machine whose engine answers when it runs; keeps what was done to it, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.done: list[str] = []
        self.running = False
        self.programs = {"dockerd", "iptables", "iptables-nft", "iptables-legacy", "ip6tables-legacy"}
        self.kinds = {"iptables", "iptables-nft"}
        self.permission = True
        self.folder = folder
        self.may_install = True
        monkeypatch.setattr(ensure_engine.Engine, "version", self._version)
        monkeypatch.setattr(debian, "may_install", lambda: self.may_install)
        monkeypatch.setattr(debian, "install", self._install)
        monkeypatch.setattr(ensure_engine, "find", lambda name: f"/sbin/{name}" if name in self.programs else None)
        monkeypatch.setattr(ensure_engine, "quietly", self._quietly)
        monkeypatch.setattr(ensure_engine, "run", self._run)
        monkeypatch.setattr(ensure_engine, "start_by_hand", self._start_by_hand)
        monkeypatch.setattr(ensure_engine, "LOCK", folder / "lock" / "engine.lock")
        monkeypatch.setattr(ensure_engine, "LOG", folder / "dockerd.log")
        monkeypatch.setattr(ensure_engine, "PID_FILE", folder / "docker.pid")
        monkeypatch.setattr(ensure_engine, "SYSTEMD", folder / "systemd")
        monkeypatch.setattr(ensure_engine, "POLL_S", 0.0)
        monkeypatch.delenv("DOCKER_HOST", raising=False)
        self.exit_code: int | None = None

    def _version(self, timeout_s: float = 5.0) -> dict[str, Any]:
        if not self.permission:
            raise engine_module.NoPermission("no permission on the Docker engine at X. Fix: run as root")
        if not self.running:
            raise engine_module.EngineError("no Docker engine answers at X")
        return {}

    def _install(self, packages: list[str]) -> None:
        self.done.append(f"install {' '.join(packages)}")
        self.programs |= {"dockerd", "iptables"}

    def _quietly(self, command: list[str]) -> bool:
        program = command[0].removeprefix("/sbin/")
        if program.startswith("iptables"):
            return program in self.kinds
        self.done.append(" ".join(command))
        return True

    def _run(self, command: list[str], *, progress: Any) -> None:
        self.done.append(" ".join(command))
        self.running = True

    def _start_by_hand(self) -> Any:
        self.done.append("dockerd")
        self.running = self.exit_code is None
        return type("Process", (), {"poll": lambda process: self.exit_code})()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_a_running_engine_is_used_silently(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.running = True
    assert ensure_engine.main([]) == 0
    assert machine.done == []
    assert capsys.readouterr() == ("", "")


def test_an_installed_engine_is_started_by_hand_where_no_systemd_runs(machine: Machine) -> None:
    ensure_engine.ensure()
    assert machine.done == ["dockerd"]


def test_an_installed_engine_is_started_by_systemd_where_that_runs(machine: Machine) -> None:
    ensure_engine.SYSTEMD.mkdir()
    ensure_engine.ensure()
    assert machine.done == ["systemctl start docker"]


def test_a_missing_engine_is_installed_first(machine: Machine) -> None:
    machine.programs -= {"dockerd"}
    ensure_engine.ensure()
    assert machine.done == ["install docker.io", "dockerd"]


def test_an_engine_that_its_installation_started_is_not_started_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.programs -= {"dockerd"}
    monkeypatch.setattr(debian, "install", lambda packages: setattr(machine, "running", True))
    ensure_engine.ensure()
    assert machine.done == []


def test_a_docker_command_without_an_engine_does_not_count(machine: Machine) -> None:
    machine.programs = {"docker", "iptables"}
    ensure_engine.ensure()
    assert machine.done[0] == "install docker.io"


def test_missing_iptables_are_installed(machine: Machine) -> None:
    machine.programs -= {"iptables"}
    ensure_engine.ensure()
    assert machine.done == ["install iptables", "dockerd"]


def test_iptables_that_the_kernel_does_not_support_are_switched(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.kinds = {"iptables-legacy"}
    ensure_engine.ensure()
    assert machine.done == [
        "update-alternatives --set iptables /sbin/iptables-legacy",
        "update-alternatives --set ip6tables /sbin/ip6tables-legacy",
        "dockerd",
    ]
    assert "switching this machine's iptables to iptables-legacy" in capsys.readouterr().out


def test_a_kernel_without_any_iptables_is_named_before_the_engine_is_started(machine: Machine) -> None:
    machine.kinds = set()
    with pytest.raises(console.Refused, match="supports neither kind of iptables"):
        ensure_engine.ensure()
    assert machine.done == []


def test_an_engine_that_ends_at_once_shows_the_end_of_its_log(machine: Machine) -> None:
    machine.exit_code = 1
    ensure_engine.LOG.write_text("level=info msg=chatter\nfailed to start daemon: driver not supported\n")
    with pytest.raises(console.Refused) as caught:
        ensure_engine.ensure()
    assert "ended with exit code 1" in str(caught.value)
    assert "failed to start daemon: driver not supported" in str(caught.value)
    assert "chatter" not in str(caught.value)


def test_an_engine_that_never_answers_is_given_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensure_engine, "START_TIMEOUT_S", 0.0)
    process = type("Process", (), {"poll": lambda process: None})()
    monkeypatch.setattr(ensure_engine, "start_by_hand", lambda: process)
    with pytest.raises(console.Refused, match="does not answer after 0 s"):
        ensure_engine.ensure()


def test_an_engine_that_is_just_starting_is_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensure_engine, "engine_process", lambda: 1234)
    answers = iter([False, False, False, False, True])
    monkeypatch.setattr(ensure_engine, "answers", lambda engine: next(answers))
    ensure_engine.ensure()
    assert machine.done == []


@pytest.mark.parametrize("text", ["", "not a number", str(os.getpid()), "999999999"])
def test_a_pid_file_that_names_no_engine_is_removed(machine: Machine, text: str) -> None:
    """After a container's restart the number belongs to another program, and the engine would not start."""
    ensure_engine.PID_FILE.write_text(text)
    ensure_engine.ensure()
    assert not ensure_engine.PID_FILE.exists()
    assert machine.done == ["dockerd"]


def test_without_permission_nothing_is_installed(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.permission = False
    assert ensure_engine.main([]) == 1
    assert machine.done == []
    assert "Fix: run as root" in capsys.readouterr().err


def test_an_engine_named_by_the_user_is_never_replaced(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    assert ensure_engine.main([]) == 1
    assert machine.done == []
    assert "start that engine, or unset DOCKER_HOST" in capsys.readouterr().err


def test_where_nothing_may_be_installed_the_user_learns_what_to_do(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.may_install = False
    assert ensure_engine.main([]) == 1
    assert machine.done == []
    assert "sudo apt-get install docker.io" in capsys.readouterr().err
