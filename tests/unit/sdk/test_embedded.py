"""The daemon that a process starts for itself: one, private, and gone with its process."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ms_enclave import _embedded as embedded
from ms_enclave._embedded import EmbeddedDaemon
from ms_enclave._transports.grpc import GrpcTransport
from ms_enclave.errors import DaemonStartFailed

ROOT = Path(__file__).resolve().parents[3]

STAND_IN = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "sdk_python")!r}]
from ms_enclave import _embedded
_embedded._command = lambda directory, fd: [
    sys.executable, "-m", "tests.unit.sdk.fake_daemon",
    "--listen-unix", str(directory / "enclaved.sock"), "--embedded-parent-fd", str(fd)]
"""
"""Lets a script start the fake daemon instead of the real one."""


def fake(directory: Path, parent_fd: int) -> list[str]:
    socket = str(directory / "enclaved.sock")
    return [
        *(sys.executable, "-P", "-m", "tests.unit.sdk.fake_daemon"),
        *("--listen-unix", socket, "--embedded-parent-fd", str(parent_fd)),
    ]


def script(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def runtime_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short runtime directory of the user."""
    path = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    monkeypatch.setattr(embedded, "_DIRECTORY_BYTES_MAX", 90)
    return path


@pytest.fixture
def daemon(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedDaemon]:
    """One that starts the fake daemon."""
    monkeypatch.setattr(embedded, "_command", fake)
    found = EmbeddedDaemon()
    yield found
    found.stop()


def pid_of(address: str) -> int:
    """Asks the fake daemon who it is."""
    health = asyncio.run(GrpcTransport(address).health())
    return int(health.system_info["engine_version"])


def wait_until_gone(pid: int) -> bool:
    """Waits for the end of a process that need not be our child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], 20)[0])
    finally:
        os.close(fd)


def test_it_starts_answers_and_leaves_nothing(daemon: EmbeddedDaemon, runtime_dir: Path) -> None:
    assert daemon.running_address is None
    address = daemon.ensure()
    assert daemon.running_address == address
    pid = pid_of(address)
    (directory,) = (runtime_dir / "ms-enclave").iterdir()
    assert directory.name.startswith(f"{os.getpid()}-")
    assert directory.stat().st_mode & 0o777 == 0o700
    assert directory.parent.stat().st_mode & 0o777 == 0o700
    assert os.getsid(pid) == pid, "Ctrl-C in our terminal is not for it"
    daemon.stop()
    assert wait_until_gone(pid)
    assert not (runtime_dir / "ms-enclave").exists()
    daemon.stop()


def test_many_threads_share_one(daemon: EmbeddedDaemon) -> None:
    addresses: list[str] = []
    barrier = threading.Barrier(4)

    def ask() -> None:
        barrier.wait(10)
        addresses.append(daemon.ensure())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(addresses) == 4
    assert len(set(addresses)) == 1


def test_one_that_died_is_started_again_in_its_place(daemon: EmbeddedDaemon, runtime_dir: Path) -> None:
    address = daemon.ensure()
    first = pid_of(address)
    os.kill(first, signal.SIGKILL)
    assert wait_until_gone(first)
    daemon.revive("unix:/somebody/else")
    assert daemon.running_address is None
    daemon.revive(address)
    assert daemon.running_address == address
    assert pid_of(address) != first
    daemon.stop()
    assert list(runtime_dir.glob("ms-enclave/*")), "what the first left behind is for a later one to find"


def test_a_start_that_fails_says_what_the_daemon_said(
    daemon: EmbeddedDaemon, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; print('x' * 9000); sys.exit('enclaved: the engine of this ship is missing')"
    monkeypatch.setattr(embedded, "_command", lambda directory, fd: script(code))
    with pytest.raises(DaemonStartFailed, match=r"(?s)ended with code 1.*the engine of this ship is missing") as caught:
        daemon.ensure()
    assert len(str(caught.value)) < 5000
    assert not (runtime_dir / "ms-enclave").exists()


def test_a_program_that_is_not_there_is_named(daemon: EmbeddedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_command", lambda directory, fd: ["/nonexistent/python"])
    with pytest.raises(ConnectionError, match=r"cannot start an embedded daemon.*/nonexistent/python"):
        daemon.ensure()


def test_one_that_never_answers_is_given_up_and_killed(
    daemon: EmbeddedDaemon, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = runtime_dir / "pid"
    code = f"import os, pathlib, signal; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); signal.pause()"
    monkeypatch.setattr(embedded, "_command", lambda directory, fd: script(code))
    monkeypatch.setattr(embedded, "START_S", 1.0)
    monkeypatch.setattr(embedded, "STOP_S", 0.1)
    with pytest.raises(DaemonStartFailed, match=r"did not answer within 1 seconds:\n\(it said nothing\)"):
        daemon.ensure()
    assert wait_until_gone(int(pid_file.read_text()))


def test_its_log_stays_small(daemon: EmbeddedDaemon, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "LOG_BYTES_MAX", 1000)
    monkeypatch.setattr(embedded, "LOG_BYTES_KEPT", 100)
    daemon.ensure()
    (log,) = (runtime_dir / "ms-enclave").glob("*/daemon.log")
    log.write_bytes(b"a" * 900)
    daemon.ensure()
    assert log.stat().st_size == 900
    log.write_bytes(b"a" * 1000 + b"b" * 100)
    daemon.ensure()
    assert log.read_bytes() == b"b" * 100


# -- its process, killed and forked ------------------------------------------------------------------------------


def run_script(code: str, runtime_dir: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime_dir)}
    return subprocess.Popen(script(code), stdout=subprocess.PIPE, text=True, env=environment)


def test_it_ends_when_its_process_is_killed(runtime_dir: Path) -> None:
    code = f"""{STAND_IN}
import asyncio, os, signal
from ms_enclave._embedded import EmbeddedDaemon
from tests.unit.sdk.test_embedded import pid_of
_embedded._DIRECTORY_BYTES_MAX = 90
print(pid_of(EmbeddedDaemon().ensure()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with run_script(code, runtime_dir) as process:
        pid = int(process.communicate(timeout=60)[0])
    assert process.returncode == -signal.SIGKILL
    assert wait_until_gone(pid)


def test_it_ends_with_its_process_although_a_forked_child_lives_on(runtime_dir: Path) -> None:
    code = f"""{STAND_IN}
import os, signal, sys
from ms_enclave._embedded import EmbeddedDaemon
_embedded._DIRECTORY_BYTES_MAX = 90
daemon = EmbeddedDaemon()
daemon.ensure()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.close(writer)
    os.read(reader, 1)
    sys.exit(0)
print(daemon._process.pid, child, daemon.running_address is not None, flush=True)
signal.pause()
"""
    with run_script(code, runtime_dir) as process:
        assert process.stdout is not None
        daemon_pid, child_pid, runs = process.stdout.readline().split()
        assert runs == "True"
        os.kill(process.pid, signal.SIGKILL)
        assert wait_until_gone(int(daemon_pid))
        wait_until_gone(int(child_pid))


def test_a_forked_child_has_none_and_starts_its_own(runtime_dir: Path) -> None:
    code = f"""{STAND_IN}
import os
from ms_enclave._embedded import EmbeddedDaemon
_embedded._DIRECTORY_BYTES_MAX = 90
daemon = EmbeddedDaemon()
first = daemon.ensure()
child = os.fork()
if child == 0:
    assert daemon.running_address is None
    assert daemon.ensure() != first
    daemon.stop()
    os._exit(0)
status = os.waitpid(child, 0)[1]
print(os.waitstatus_to_exitcode(status), daemon.running_address == first)
"""
    with run_script(code, runtime_dir) as process:
        assert process.communicate(timeout=60)[0] == "0 True\n"
    assert process.returncode == 0
    assert not (runtime_dir / "ms-enclave").exists()


# -- where it is and what it inherits ----------------------------------------------------------------------------


def test_without_a_runtime_directory_it_is_below_the_temporary_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(embedded.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(embedded, "_DIRECTORY_BYTES_MAX", 200)
    found = embedded.private_directory()
    assert found.parent == tmp_path / f"ms-enclave-{os.geteuid()}"


def test_a_directory_that_others_may_read_is_not_used(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (runtime_dir / "ms-enclave").mkdir()
    (runtime_dir / "ms-enclave").chmod(0o755)
    monkeypatch.setattr(embedded.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(embedded, "_DIRECTORY_BYTES_MAX", 200)
    assert embedded.private_directory().is_relative_to(tmp_path)


def test_a_path_too_long_for_sockets_is_not_used(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_DIRECTORY_BYTES_MAX", 5)
    with pytest.raises(DaemonStartFailed, match="no private directory"):
        embedded.private_directory()


def test_it_finds_both_packages_and_logs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "relative")
    monkeypatch.delenv("ENCLAVED_LOG_LEVEL", raising=False)
    found = embedded._environment()
    assert found["ENCLAVED_LOG_LEVEL"] == "warning"
    places = found["PYTHONPATH"].split(os.pathsep)
    assert {str(ROOT), str(ROOT / "sdk_python")} <= set(places)
    assert all(Path(place).is_absolute() for place in places)
    monkeypatch.setenv("ENCLAVED_LOG_LEVEL", "debug")
    assert embedded._environment()["ENCLAVED_LOG_LEVEL"] == "debug"


def test_a_daemon_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DaemonStartFailed, match=r"'enclaved' is not installed.*MS_ENCLAVE_ADDRESS"):
        embedded._environment()
