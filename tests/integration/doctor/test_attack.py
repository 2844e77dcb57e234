"""``enclaved doctor --attack``: the whole suite against real sandboxes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from enclaved.config import load
from enclaved.doctor.attacking import attack, chosen
from enclaved.doctor.attacks.base import Category
from enclaved.doctor.attacks.suite import SUITE
from enclaved.doctor.own_daemon import own_daemon, private_directory
from tests.integration.failures.ground import until

WHOLE_S = 900
PATIENCE_S = 300


def run(*arguments: str, timeout_s: float = PATIENCE_S, **variables: str) -> tuple[int, str, str]:
    """Runs the command and returns its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "enclaved", "doctor", *arguments],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def is_child_of(pid: str, session: int) -> bool:
    """Whether a process is a daemon that a doctor with this process id started."""
    try:
        return f"/tmp/mse-doctor-{session}-".encode() in Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return False


def as_json(printed: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed)
    return found


@pytest.mark.timeout(WHOLE_S + 30)
def test_every_attack_is_contained_and_every_control_works() -> None:
    code, printed, errors = run("--attack", "--json", timeout_s=WHOLE_S)
    assert printed, errors
    report = as_json(printed)

    bad = [f"{each['id']}: {each['why']}" for each in report["attacks"] if each["outcome"] != "contained"]
    assert bad == []
    assert (code, report["passed"], report["cut_short"], report["problems"]) == (0, True, False, [])
    assert [each["id"] for each in report["attacks"]] == [each.id for each in SUITE]
    assert set(report["scores"]) == {category.value for category in Category}


def test_a_part_of_the_suite_is_a_score_by_category_and_leaves_nothing() -> None:
    chosen_here = ("--only", "escape.mounts", "--only", "tenancy.next-sandbox", "--category", "controls")
    arguments = [sys.executable, "-P", "-m", "enclaved", "doctor", "--attack", *chosen_here]
    with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        printed, _ = process.communicate(timeout=PATIENCE_S)

    scores = [["escape", "1", "1"], ["tenancy", "1", "1"], ["controls", "6", "6"]]
    assert process.returncode == 0, printed
    assert [line.split()[:3] for line in printed.splitlines()[1:4]] == scores
    assert printed.splitlines()[-1].startswith("2 of 2 attacks contained in ")
    assert list(Path("/tmp").glob(f"mse-doctor-{process.pid}-*")) == []
    assert [pid for pid in os.listdir("/proc") if pid.isdigit() and is_child_of(pid, process.pid)] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("place", ["d", "d/g.sock"], ids=["while its daemon starts", "in the middle"])
async def test_a_doctor_that_is_ended_leaves_nothing(number: signal.Signals, place: str) -> None:
    arguments = [sys.executable, "-P", "-m", "enclaved", "doctor", "--attack", "--category", "resources"]
    silent = subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*arguments, stdout=silent, stderr=silent)
    pattern = f"mse-doctor-{process.pid}-*"
    await until(lambda: next(Path("/tmp").glob(f"{pattern}/{place}"), None), f"the doctor's {place}")
    process.send_signal(number)
    await process.wait()

    await until(lambda: not list(Path("/tmp").glob(pattern)), "the end of the doctor's directory")
    children = [pid for pid in os.listdir("/proc") if pid.isdigit()]
    await until(lambda: not any(is_child_of(pid, process.pid) for pid in children), "the end of its daemon")


async def test_what_a_doctor_left_that_was_killed_with_its_daemon_is_removed_by_the_next_one() -> None:
    arguments = [sys.executable, "-P", "-m", "enclaved", "doctor", "--attack", "--category", "resources"]
    silent = subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*arguments, stdout=silent, stderr=silent)
    pattern = f"mse-doctor-{process.pid}-*"
    await until(lambda: next(Path("/tmp").glob(f"{pattern}/d/g.sock"), None), "the doctor's daemon")
    children = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and is_child_of(pid, process.pid)]
    process.send_signal(signal.SIGSTOP)  # so that it does not see its daemon go
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    process.kill()
    await process.wait()
    await until(lambda: not any(is_child_of(str(pid), process.pid) for pid in children), "the end of its daemon")
    assert list(Path("/tmp").glob(pattern))

    arguments = [*arguments[:-2], "--only", "escape.mounts"]
    next_one = await asyncio.create_subprocess_exec(*arguments, stdout=silent, stderr=silent)
    async with asyncio.timeout(PATIENCE_S):
        assert await next_one.wait() == 0
    assert list(Path("/tmp").glob(pattern)) == []


async def test_a_daemon_that_runs_already_is_attacked_as_far_as_a_client_sees() -> None:
    settings = load(None).settings
    async with private_directory() as directory, own_daemon(directory, settings, None) as daemon:
        address = f"unix:{daemon.socket_path}"
        attacks = chosen(["controls"], ["escape.devices", "output.forged-log", "http.keys", "profile.filters"])
        report = await attack(settings, None, attacks, address=address)

    outcomes = {result.attack.id: result for result in report.results}
    assert report.passed, "\n".join(report.lines())
    assert outcomes["output.forged-log"].not_run == "it needs the daemon's log"
    assert outcomes["http.keys"].not_run == "it needs the HTTP API over a unix socket"
    assert outcomes["profile.filters"].judgement is not None
    assert Counter(result.judgement is None for result in report.results) == {False: 8, True: 2}


def test_where_no_daemon_starts_it_says_why() -> None:
    code, printed, errors = run(
        "--attack", "--only", "escape.mounts", ENCLAVED_ENGINE_URL="unix:///nowhere/engine.sock"
    )

    assert (code, printed) == (1, "")
    assert "engine" in errors


def test_an_address_without_a_daemon_is_a_failure() -> None:
    code, printed, errors = run("--attack", "--only", "escape.mounts", "--address", "unix:/nowhere/d.sock")

    assert (code, printed) == (1, "")
    assert "unix:/nowhere/d.sock makes no sandbox: UNAVAILABLE" in errors


def test_the_host_is_examined_with_a_fix_for_what_is_found() -> None:
    code, printed, _ = run("--json", "--fail-on", "failure")
    found = as_json(printed)
    findings = {each["id"]: each for each in found["findings"]}

    assert (code == 1) == (found["worst"] == "failure")
    assert {"engine.version", "engine.limits", "engine.seccomp", "host.kernel", "sandbox.users"} <= set(findings)
    assert findings["engine.limits"]["severity"] == "ok"
    assert all(each["fix"] for each in findings.values() if each["severity"] in ("warning", "failure"))


def test_an_engine_that_is_away_fails_the_examination() -> None:
    code, printed, _ = run(ENCLAVED_ENGINE_URL="unix:///nowhere/engine.sock")

    assert code == 1
    assert "failure  engine.answers: the engine at unix:///nowhere/engine.sock does not answer" in printed
