"""Examines this host for a configuration: all checks, one after the other."""

from __future__ import annotations

from pathlib import Path

from enclaved.config import Settings
from enclaved.doctor.checks.daemon_checks import daemon_findings
from enclaved.doctor.checks.engine_checks import engine_findings, socket_findings
from enclaved.doctor.checks.findings import Finding, failure
from enclaved.doctor.checks.host_checks import host_findings
from enclaved.doctor.engine import EngineSilent, EngineView


def examine(settings: Settings, file: Path | None = None) -> list[Finding]:
    """Looks at the engine, the kernel and the daemon's files. Changes nothing; blocks for at most half a minute."""
    engine = EngineView(settings.engine.url)
    findings = list(socket_findings(engine.socket_path))
    try:
        findings += engine_findings(engine.version(), engine.info(), engine.images(), settings)
    except EngineSilent as error:
        fix = "start the engine, or name it with engine.url (DOCKER_HOST)"
        if isinstance(error.__cause__, PermissionError):
            fix = "run the doctor as root, or as the daemon's user, who has to be in the group of the engine's socket"
        findings.append(failure("engine.answers", str(error), fix))
    return [*findings, *host_findings(), *daemon_findings(settings, file)]
