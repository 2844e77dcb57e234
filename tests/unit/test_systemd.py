"""The files for systemd: valid, tight, and in step with the daemon's own limits."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from enclaved.config import DEFAULT_FILE, Settings
from enclaved.daemon import _serve as serve

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = (SYSTEMD / "enclaved.service").read_text()


def directive(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)
    return str(value)


def ran(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists on this machine, so that only the unit itself is judged."""
    copy, program = tmp_path / "enclaved.service", tmp_path / "enclaved"
    program.symlink_to(sys.executable)  # whose own path may have spaces
    copy.write_text(UNIT.replace("/opt/ms-enclave/bin/enclaved", str(program)))
    return copy


def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path):
    done = ran("systemd-analyze", "verify", "--man=no", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_finds_nothing_wrong_with_the_slice():
    done = ran("systemd-analyze", "verify", "--man=no", SYSTEMD / "enclaved.slice")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_is_exposed_no_more_than_it_says(unit: Path):
    done = ran("systemd-analyze", "security", "--offline=true", "--no-pager", unit)
    (level,) = re.findall(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert float(level) <= 1.5


def test_the_unit_runs_the_daemon_and_hears_from_it():
    assert directive("ExecStart") == "/opt/ms-enclave/bin/enclaved run"
    assert directive("Type") == "notify"
    assert float(directive("WatchdogSec")) >= 10


def test_a_reload_reaches_the_daemon_first_and_fails_if_the_configuration_is_wrong():
    assert re.findall(r"^ExecReload=(.*)$", UNIT, re.MULTILINE) == [
        "/bin/kill -HUP $MAINPID",
        "/opt/ms-enclave/bin/enclaved config check",
    ]


def test_a_stop_gets_more_time_than_the_daemon_takes_at_most():
    ours = Settings().daemon.drain_grace_s
    ours += serve.REMOVE_SANDBOXES_S + serve.STOP_SERVER_S + serve.CLOSE_BACKGROUND_S
    assert float(directive("TimeoutStopSec")) > ours


def test_the_unit_makes_the_directories_that_the_daemon_uses_by_default():
    settings = Settings()
    assert Path("/run") / directive("RuntimeDirectory") == Path(settings.listen.unix).parent
    assert Path("/var/lib") / directive("StateDirectory") == Path(settings.state.dir)
    assert directive("StateDirectoryMode") == "0700"
    assert directive("RuntimeDirectoryPreserve") == "yes"


def test_the_daemon_may_give_its_sockets_to_groups():
    filters = re.findall(r"^SystemCallFilter=(.*)$", UNIT, re.MULTILINE)
    denied = next(n for n, rule in enumerate(filters) if rule.startswith("~@privileged"))
    assert filters.index("@chown") > denied


def test_the_users_and_groups_of_the_unit_are_made():
    done = ran("systemd-sysusers", "--dry-run", SYSTEMD / "enclaved.sysusers")
    assert done.returncode == 0, done.stderr
    made = (SYSTEMD / "enclaved.sysusers").read_text()
    assert re.search(rf"^u {directive('User')} ", made, re.MULTILINE)
    assert re.search(rf"^g {Settings().listen.unix_group} ", made, re.MULTILINE)
    assert Settings().listen.unix_group in directive("SupplementaryGroups").split()


def test_the_directory_of_the_configuration_is_made(tmp_path: Path):
    done = ran("systemd-tmpfiles", "--create", f"--root={tmp_path}", SYSTEMD / "enclaved.tmpfiles")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / DEFAULT_FILE.parent.relative_to("/")).is_dir()
