"""Runs the test suites one after the other, each within its time budget, and looks for what they left behind."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from _console import run_script
from _engine import Container, Engine

ROOT = Path(__file__).resolve().parent.parent
FULL_BUDGET_FACTOR = 10
TEARDOWN_S = 30.0
"""How long interrupted tests may take to clean up."""
LEAVING_S = 15.0
"""How long daemons may take to go after the tests that started them."""
POLL_S = 0.2
NOTHING_COLLECTED = 5
"""pytest's exit code when no test was chosen."""
SANDBOX_LABEL = "enclaved.id"
OWNER_LABEL = "enclaved.owner"
RUN_VARIABLE = "MS_ENCLAVE_TEST_RUN"
"""Environment variable by which the processes of a test run are known."""


@dataclass(frozen=True)
class Suite:
    """Tests that run in one pytest process."""

    name: str
    paths: tuple[str, ...]
    budget_s: float
    """The suite is interrupted, and has failed, after this time: twice and more what two idle processors take."""
    must_run: bool = False
    """A skipped test, or no test at all, is a failure."""


SUITES = (
    Suite("unit", ("tests/unit",), 400),
    Suite("architecture", ("tests/architecture",), 60),
    Suite("proto", ("tests/proto",), 60),
    Suite("docs", ("tests/docs",), 480),
    Suite("scripts", ("tests/scripts",), 180),
    Suite("service", ("tests/service",), 2400),
    Suite("monitoring", ("tests/monitoring",), 240, must_run=True),
    Suite("conformance", ("tests/conformance",), 480, must_run=True),
    Suite("clients", ("tests/clients",), 360, must_run=True),
    Suite("systemd", ("tests/systemd",), 480, must_run=True),
    Suite("integration", ("tests/integration", "tests/test_sandbox.py"), 2700, must_run=True),
)


@dataclass
class Sums:
    """How many tests ended how."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)
    """What went wrong besides failed tests; each counts as one failure."""

    def add(self, other: Sums) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.problems += other.problems

    def line(self) -> str:
        """Returns the last line of a run."""
        return f"{self.passed} passed, {self.failed + len(self.problems)} failed"


def main(arguments: Sequence[str]) -> int:
    sums = Sums()
    exit_code = run_script("test", lambda: run_all(chosen(arguments), sums))
    for problem in sums.problems:
        print(f"FAILED {problem}")
    print(sums.line())
    return exit_code or int(sums.failed + len(sums.problems) > 0)


@dataclass(frozen=True)
class Choice:
    """What to run, and how."""

    suites: tuple[Suite, ...]
    options: tuple[str, ...]
    partial: bool
    """The user chose tests, so that a suite may well have none."""


def chosen(arguments: Sequence[str], suites: Sequence[Suite] = SUITES) -> Choice:
    """Makes suites and pytest options of the command line."""
    rest = [argument for argument in arguments if argument != "--full"]
    factor = FULL_BUDGET_FACTOR if "--full" in arguments else 1
    profile = ["--hypothesis-profile=full"] if "--full" in arguments else []
    paths = [argument for argument in rest if (ROOT / argument.partition("::")[0]).exists()]
    options = [argument for argument in rest if argument not in paths]
    if paths:
        suites = [Suite("chosen", tuple(paths), sum(suite.budget_s for suite in suites))]
    else:
        # A suite that this checkout does not have yet is not run; those that must run are.
        suites = [suite for suite in suites if suite.must_run or any((ROOT / path).is_dir() for path in suite.paths)]
    scaled = tuple(Suite(s.name, s.paths, s.budget_s * factor, must_run=s.must_run) for s in suites)
    return Choice(scaled, (*profile, *options), partial=bool(rest))


def run_all(choice: Choice, sums: Sums) -> None:
    """Runs the suites, also those after a failed one; then waits for, names and removes what they left."""
    with scratch() as folder:
        environment = {
            **os.environ,
            RUN_VARIABLE: str(folder),
            "TMPDIR": str(folder / "tmp"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
        }
        try:
            for suite in choice.suites:
                run_suite(suite, choice, folder, environment, sums)
        finally:
            sums.problems += remove_leftovers(Engine.from_environment(), folder)


def run_suite(suite: Suite, choice: Choice, folder: Path, environment: Mapping[str, str], sums: Sums) -> None:
    print(f"== {suite.name} (at most {suite.budget_s:.0f} s)", flush=True)
    report = folder / f"{suite.name}.xml"
    command = [sys.executable, "-m", "pytest", "-q", f"--basetemp={folder / suite.name}", f"--junitxml={report}"]
    process = subprocess.Popen(
        [*command, *suite.paths, *choice.options],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        # A session of its own: Ctrl-C reaches it once, from us, and not again while it cleans up.
        start_new_session=True,
    )
    timed_out = False
    try:
        process.wait(timeout=suite.budget_s)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        stop(process)
        counted = count(report)
        sums.add(counted)
    if timed_out:
        sums.problems.append(f"{suite.name}: not done after {suite.budget_s:.0f} s")
    elif process.returncode == NOTHING_COLLECTED:
        if not choice.partial:
            sums.problems.append(f"{suite.name}: no test ran")
    elif process.returncode not in (0, 1):
        sums.problems.append(f"{suite.name}: pytest ended with exit code {process.returncode}")
    if suite.must_run and counted.skipped:
        sums.problems.append(f"{suite.name}: {counted.skipped} tests were skipped, and must not be")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends pytest and all it started, if it has not ended: first asks it to clean up, then kills."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=TEARDOWN_S)
    except subprocess.TimeoutExpired:
        print(f"pytest does not clean up within {TEARDOWN_S:.0f} s; killing it", flush=True)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def count(report: Path) -> Sums:
    """Reads the numbers from pytest's report; there is none if pytest was killed."""
    sums = Sums()
    if not report.exists():
        return sums
    for suite in ET.parse(report).iter("testsuite"):  # noqa: S314 (pytest wrote it a moment ago)
        total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        sums.add(Sums(passed=total - skipped - failed, failed=failed, skipped=skipped))
    return sums


@contextmanager
def scratch() -> Iterator[Path]:
    """Gives a folder for everything that the tests write, with a short name: socket paths have about 107 bytes."""
    # In /tmp also where TMPDIR says otherwise, since that may be long.
    folder = Path(tempfile.mkdtemp(prefix="mse-", dir="/tmp"))
    try:
        # Sandboxes have users of their own, which must be able to pass.
        folder.chmod(0o711)
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o1777)
        (folder / "run").mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder)


def remove_leftovers(engine: Engine, folder: Path) -> list[str]:
    """Waits until the containers and processes of this run are gone; removes and names those that stay.

    Containers are known by what they mount, processes by their environment: those of other runs and of a daemon that
    serves this machine are not ours.
    """
    deadline = time.monotonic() + LEAVING_S
    while run_processes(folder) or run_containers(engine, folder):
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    else:
        return []
    left = []
    for pid, command in run_processes(folder).items():
        left.append(f"left behind: process {pid} ({command})")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for container in run_containers(engine, folder):
        left.append(f"left behind: container {container.id[:12]}")
        engine.remove_container(container.id)
    return left


def run_containers(engine: Engine, folder: Path) -> list[Container]:
    """Returns the containers of daemons below a folder: they mount something of it, or have the label of its key."""
    owners = set()
    for key in folder.rglob("key"):
        with suppress(OSError):  # it is being removed
            owners.add(hashlib.sha256(b"owner:" + key.read_bytes()).hexdigest()[:16])
    return [
        container
        for container in engine.containers(SANDBOX_LABEL)
        if container.labels.get(OWNER_LABEL) in owners
        or any(Path(mount).is_relative_to(folder) for mount in container.mounts)
    ]


def run_processes(folder: Path) -> dict[int, str]:
    """Returns the process ids, with the commands, of what a test run started and what that started."""
    mark = f"{RUN_VARIABLE}={folder}".encode()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(process.name)] = command.decode(errors="replace").strip()
        except (OSError, ValueError):
            continue
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
