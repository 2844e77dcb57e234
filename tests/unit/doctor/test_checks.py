"""The checks of the host: pure functions of what an engine, a kernel and a configuration say."""

from __future__ import annotations

import errno
import shutil
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from enclaved.config import Settings
from enclaved.doctor.checks import engine_checks
from enclaved.doctor.checks.daemon_checks import certificate_finding, daemon_findings
from enclaved.doctor.checks.engine_checks import engine_findings, socket_findings
from enclaved.doctor.checks.examination import examine
from enclaved.doctor.checks.findings import Finding, Severity
from enclaved.doctor.checks.holes import HOLES, has, known, version_of
from enclaved.doctor.checks.host_checks import host_findings, landlock_finding

VERSION: dict[str, Any] = {
    "Version": "29.4.0",
    "Components": [
        {"Name": "runc", "Version": "1.4.1", "Details": {"GitCommit": "v1.4.1-0-gabc"}},
        {"Name": "containerd", "Version": "2.1.0", "Details": {}},
    ],
}
INFO: dict[str, Any] = {
    "MemoryLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "SwapLimit": True,
    "CgroupVersion": "2",
    "CgroupDriver": "systemd",
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=apparmor", "name=userns"],
    "Driver": "overlay2",
    "LiveRestoreEnabled": True,
    "Runtimes": {"runc": {}},
    "DockerRootDir": "/",
    "SystemTime": "",
    "Warnings": None,
}
CERTIFICATES = Path(__file__).parents[2] / "service" / "certificates"
IMAGES = ["python:3.11-slim"]


def found(version: dict[str, Any] = VERSION, **changes: Any) -> dict[str, Finding]:
    info = {**INFO, "SystemTime": datetime.now(UTC).isoformat(), **changes}
    return {finding.id: finding for finding in engine_findings(version, info, IMAGES, Settings())}


def test_a_good_engine_has_nothing_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_checks, "ROOM_LEAST_BYTES", 0)

    assert {finding.id for finding in found().values() if finding.severity > Severity.OK} == set()


@pytest.mark.parametrize(
    ("changes", "finding_id", "severity"),
    [
        ({"MemoryLimit": False}, "engine.limits", Severity.FAILURE),
        ({"PidsLimit": None}, "engine.limits", Severity.FAILURE),
        ({"CgroupDriver": "none"}, "engine.limits", Severity.FAILURE),
        ({"SecurityOptions": []}, "engine.seccomp", Severity.FAILURE),
        ({"SecurityOptions": ["name=seccomp,profile=unconfined"]}, "engine.seccomp", Severity.FAILURE),
        ({"SecurityOptions": ["name=seccomp,profile=default"]}, "engine.user-namespaces", Severity.NOTE),
        ({"SecurityOptions": ["name=seccomp,profile=default"]}, "engine.apparmor", Severity.NOTE),
        ({"SecurityOptions": None}, "engine.seccomp", Severity.FAILURE),
        ({"Driver": "vfs"}, "engine.storage", Severity.WARNING),
        ({"LiveRestoreEnabled": False}, "engine.live-restore", Severity.NOTE),
        ({"Warnings": ["no swap"]}, "engine.warnings", Severity.WARNING),
        ({"SystemTime": (datetime.now(UTC) - timedelta(hours=1)).isoformat()}, "engine.clock", Severity.WARNING),
        ({"SystemTime": "nonsense"}, "engine.clock", Severity.NOTE),
        ({"DockerRootDir": "/nowhere-at-all"}, "engine.room", Severity.NOTE),
    ],
)
def test_what_an_engine_lacks_is_found(changes: dict[str, Any], finding_id: str, severity: Severity) -> None:
    finding = found(**changes)[finding_id]

    assert finding.severity is severity
    assert finding.fix or severity is Severity.NOTE


@pytest.mark.parametrize(
    ("version", "severity"),
    [("19.3.0", Severity.FAILURE), ("", Severity.WARNING), ("dev", Severity.WARNING), ("20.10.24+dfsg1", Severity.OK)],
)
def test_an_engine_that_is_too_old_is_found(version: str, severity: Severity) -> None:
    assert found({"Version": version})["engine.version"].severity is severity


def test_an_image_that_is_not_there_and_cannot_be_pulled_is_found() -> None:
    settings = Settings.model_validate({"engine": {"pull": False}, "images": {"default": "nowhere/x", "aliases": {}}})
    findings = {one.id: one for one in engine_findings(VERSION, INFO, [], settings)}

    assert findings["engine.image"].severity is Severity.FAILURE
    assert "docker pull nowhere/x" in findings["engine.image"].fix


def test_an_alias_that_is_there_is_as_good_as_the_image() -> None:
    findings = {one.id: one for one in engine_findings(VERSION, INFO, ["ms-enclave/python:3.11"], Settings())}

    assert findings["engine.image"].severity is Severity.OK


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.1.5+ds1-1+deb12u1", (1, 1, 5)),
        ("v1.2.8-0-geeb7e60", (1, 2, 8)),
        ("6.18.44-fc-v669", (6, 18, 44)),
        ("26.0.0-rc2", (26, 0, -1)),
        ("29.3", (29, 3, 0)),
        ("5d6db84", None),
        ("", None),
    ],
)
def test_versions_are_read(text: str, version: tuple[int, ...] | None) -> None:
    assert version_of(text) == version


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("CVE-2024-21626", "1.1.11", True),
        ("CVE-2024-21626", "1.1.12", False),
        ("CVE-2024-21626", "1.1.5+ds1-1+deb12u1", False),
        ("CVE-2024-21626", "1.1.5+ds1-1", True),
        ("CVE-2025-31133", "1.2.8", False),
        ("CVE-2025-31133", "1.3.2", True),
        ("CVE-2025-31133", "1.3.4", False),
        ("CVE-2025-31133", "1.4.0", False),
        ("CVE-2025-31133", "1.1.15", True),
        ("CVE-2024-41110", "26.1.5", False),
        ("CVE-2024-41110", "26.0.0", True),
        ("CVE-2024-41110", "24.0.9", True),
        ("CVE-2024-41110", "28.0.0", False),
        ("CVE-2022-0847", "5.4.0", False),
        ("CVE-2022-0847", "5.8.1", True),
        ("CVE-2022-0847", "5.15.25", False),
        ("CVE-2022-0847", "6.1.0", False),
        ("CVE-2024-21626", "no version", False),
    ],
)
def test_a_version_has_the_holes_that_it_has(name: str, version: str, expected: bool) -> None:
    assert has(next(hole for hole in HOLES if hole.name == name), version) is expected


def test_holes_of_plug_ins_count_only_where_there_are_some() -> None:
    without = {hole.name for hole in known("engine", "20.10.24", {"networks"})}
    using = {hole.name for hole in known("engine", "20.10.24", {"networks", "authorization"})}

    assert using - without == {"CVE-2024-41110", "CVE-2026-34040"}
    assert found({"Version": "20.10.24"}, Plugins={"Authorization": ["x"]})["hole.CVE-2026-34040"].fix


def test_a_runtime_with_a_hole_that_sandboxes_could_use_is_a_warning() -> None:
    version = {**VERSION, "Components": [{"Name": "runc", "Version": "1.1.4", "Details": {}}]}

    assert found(version)["hole.CVE-2024-21626"].severity is Severity.WARNING
    assert found(version)["hole.CVE-2025-31133"].severity is Severity.NOTE


@pytest.mark.parametrize(
    ("abi", "severity"), [(7, Severity.OK), (6, Severity.OK), (5, Severity.NOTE), (0, Severity.NOTE)]
)
def test_the_version_of_landlock_is_judged(abi: int, severity: Severity) -> None:
    assert landlock_finding(abi).severity is severity


def test_this_machine_can_be_looked_at() -> None:
    findings = {finding.id: finding for finding in host_findings()}

    assert {"host.kernel", "host.landlock", "host.seccomp", "host.swap", "host.clock"} <= set(findings)
    assert findings["host.seccomp"].severity is Severity.OK


def test_a_kernel_that_says_nothing_is_found(tmp_path: Path) -> None:
    findings = {finding.id: finding for finding in host_findings(tmp_path)}

    assert findings["host.seccomp"].severity is Severity.FAILURE


@pytest.mark.parametrize(
    ("pattern", "severity"), [("|/usr/bin/handler %p", Severity.WARNING), ("core", Severity.OK), ("", Severity.OK)]
)
def test_a_program_that_the_kernel_starts_for_crashes_is_found(
    tmp_path: Path, pattern: str, severity: Severity
) -> None:
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/core_pattern").write_text(f"{pattern}\n")
    finding = {finding.id: finding for finding in host_findings(tmp_path)}["host.crashes"]
    assert finding.severity is severity
    assert ("/usr/bin/handler" in finding.what) is (severity is Severity.WARNING)


def settings_in(directory: Path, **listen: str) -> Settings:
    values = {"unix": str(directory / "d.sock"), "metrics": "", **listen}
    return Settings.model_validate({"state": {"dir": str(directory / "state")}, "listen": values})


def checked(settings: Settings, file: Path | None = None, cgroups: Path = Path("/nowhere")) -> dict[str, Finding]:
    return {finding.id: finding for finding in daemon_findings(settings, file, cgroups)}


def test_files_that_others_may_read_or_write_are_found(tmp_path: Path) -> None:
    state, config = tmp_path / "state", tmp_path / "config.toml"
    state.mkdir(mode=0o755)
    state.chmod(0o755)
    (state / "key").write_text("x")
    (state / "key").chmod(0o644)
    config.write_text('[http]\napi_keys = ["plain"]\n')
    config.chmod(0o644)
    findings = checked(settings_in(tmp_path), config)

    assert findings["state.dir"].severity is Severity.FAILURE
    assert findings["state.files"].severity is Severity.WARNING
    assert findings["config.file"].severity is Severity.WARNING
    config.chmod(0o666)
    assert checked(settings_in(tmp_path), config)["config.file"].severity is Severity.FAILURE
    state.chmod(0o700)
    (state / "key").chmod(0o600)
    config.chmod(0o640)
    findings = checked(settings_in(tmp_path), config)
    assert {findings["state.dir"].severity, findings["config.file"].severity} == {Severity.OK}
    assert "state.files" not in findings


def test_a_socket_that_everybody_may_use_is_found(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        path.chmod(0o666)
        assert checked(settings_in(tmp_path))["listen.unix"].severity is Severity.FAILURE
        assert {one.id: one for one in socket_findings(path)}["engine.socket"].severity is Severity.FAILURE
        path.chmod(0o660)
        assert checked(settings_in(tmp_path))["listen.unix"].severity is Severity.OK
        assert {one.id: one for one in socket_findings(path)}["engine.socket"].severity is Severity.OK
        tmp_path.chmod(0o777)
        assert checked(settings_in(tmp_path))["listen.directory"].severity is Severity.FAILURE
    assert checked(settings_in(tmp_path, unix_mode="0666"))["listen.unix"].severity >= Severity.NOTE


def test_an_engine_over_tcp_without_tls_is_found() -> None:
    assert next(socket_findings(None, {})).severity is Severity.WARNING
    assert next(socket_findings(None, {"DOCKER_TLS_VERIFY": "1"})).severity is Severity.OK


def test_an_engine_that_is_away_is_a_failure_with_a_fix(tmp_path: Path) -> None:
    settings = settings_in(tmp_path).model_copy(update={"engine": Settings().engine.model_copy()})
    url = f"unix://{tmp_path}/nobody.sock"
    settings = settings.model_copy(update={"engine": settings.engine.model_copy(update={"url": url})})
    findings = {finding.id: finding for finding in examine(settings)}

    assert findings["engine.answers"].severity is Severity.FAILURE
    assert "engine.url" in findings["engine.answers"].fix
    assert findings["engine.socket"].severity is Severity.FAILURE


def test_an_engine_that_this_user_may_not_use_is_not_to_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    settings = Settings.model_validate({"engine": {"url": f"unix://{tmp_path}/engine.sock"}})
    findings = {finding.id: finding for finding in examine(settings, None)}

    assert "Permission denied" in findings["engine.answers"].what
    assert "group of the engine's socket" in findings["engine.answers"].fix
    assert "start" not in findings["engine.answers"].fix


def test_a_listener_that_is_open_to_others_is_found(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, tcp="10.0.0.1:50061", http="127.0.0.1:8000")
    findings = checked(settings)

    assert findings["listen.tcp"].severity is Severity.FAILURE
    assert findings["listen.http"].severity is Severity.NOTE


def test_a_waived_protection_and_keys_in_urls_are_found(tmp_path: Path) -> None:
    settings = Settings.model_validate({"waive": {"protections": ["seccomp"]}, "http": {"api_key_in_url": True}})

    assert checked(settings)["waive.protections"].severity is Severity.WARNING
    assert checked(settings)["http.api_key_in_url"].severity is Severity.WARNING
    assert checked(Settings())["waive.protections"].severity is Severity.OK


def test_a_policy_that_others_may_write_or_that_is_not_there_is_found(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    settings = Settings.model_validate({"policy": {"file": str(path)}})

    assert checked(settings)["policy.file"].severity is Severity.FAILURE
    path.touch(0o644)
    assert checked(settings)["policy.file"].severity is Severity.OK
    path.chmod(0o664)
    assert checked(settings)["policy.file"].severity is Severity.FAILURE


def test_a_certificate_that_cannot_be_used_is_found(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nonsense")
    (tmp_path / "key.pem").write_text("nonsense")

    for suffix in ("crt", "key"):
        shutil.copy(CERTIFICATES / f"first.{suffix}", tmp_path)
        (tmp_path / f"first.{suffix}").chmod(0o600)
    good = tmp_path / "first.crt", tmp_path / "first.key"
    assert certificate_finding(*good, now_s=0).severity is Severity.OK
    assert certificate_finding(*good, now_s=1e11).severity is Severity.FAILURE
    good[1].chmod(0o644)
    assert "others may read the key" in certificate_finding(*good, now_s=0).what
    finding = certificate_finding(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert finding.severity is Severity.FAILURE
    assert "no certificate" in finding.what


def test_user_ids_that_somebody_else_may_use_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from enclaved.doctor.checks import daemon_checks

    (tmp_path / "subuid").write_text("somebody:100000:65536\nodd\n")
    monkeypatch.setattr(daemon_checks, "ACCOUNTS", tmp_path)
    settings = Settings.model_validate({"sandbox": {"uid_first": 120000, "uid_count": 100}})

    assert checked(settings)["sandbox.users"].severity is Severity.WARNING
    assert "somebody" in checked(settings)["sandbox.users"].what
    assert checked(Settings())["sandbox.users"].severity is Severity.OK


@pytest.mark.parametrize(
    ("place", "text", "severity"),
    [
        ("enclaved.slice/memory.max", "1073741824", Severity.OK),
        ("memory/enclaved/memory.limit_in_bytes", "1073741824", Severity.OK),
        ("memory/enclaved/memory.limit_in_bytes", "9223372036854771712", Severity.NOTE),
        ("enclaved.slice/memory.max", "max", Severity.NOTE),
    ],
)
def test_a_ceiling_for_all_sandboxes_is_found(tmp_path: Path, place: str, text: str, severity: Severity) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(text)

    assert checked(Settings(), cgroups=tmp_path)["sandbox.ceiling"].severity is severity
