"""What scripts/test counts, when it fails, and that nothing stays behind. The tests that it runs here are made up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.loading import SCRIPTS, load

suites = load("_suites")
engine_module = load("_engine")


class Engine:
    host = "unix:///fake.sock"

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.removed: list[str] = []

    def containers(self, label: str) -> list[Any]:
        return [container for container in self.found if container.id not in self.removed]

    def remove_container(self, container_id: str) -> None:
        self.removed.append(container_id)


class Project:
    """A folder with suites of made-up tests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.suites: list[Any] = []

    def suite(self, name: str, code: str | None, *, budget_s: float = 60, must_run: bool = False) -> None:
        self.suites.append(suites.Suite(name, (f"tests/{name}",), budget_s, must_run=must_run))
        if code is not None:
            (self.root / "tests" / name).mkdir(parents=True)
            (self.root / "tests" / name / f"test_{name}.py").write_text(code)

    def run(self, *arguments: str) -> Any:
        """Returns the sums of a run."""
        sums = suites.Sums()
        suites.run_all(suites.chosen(arguments, self.suites), sums)
        return sums


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    fake = Engine()
    monkeypatch.setattr(suites.Engine, "from_environment", lambda: fake)
    return fake


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: Engine) -> Project:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    monkeypatch.setattr(suites, "ROOT", tmp_path)
    monkeypatch.setattr(suites, "LEAVING_S", 0.0)
    return Project(tmp_path)


PASS = "def test_a(): pass\n"
FAIL = "def test_b(): assert False\n"
ERROR = "import pytest\n@pytest.fixture\ndef broken(): raise RuntimeError\ndef test_c(broken): pass\n"
HANGS = """
import pathlib, pytest, threading

@pytest.fixture
def thing():
    yield
    pathlib.Path({mark!r}).touch()

def test_a(): pass

def test_hangs(thing):
    pathlib.Path({fifo!r}).write_text("ready")
    threading.Event().wait()
"""
SKIP = "import pytest\n@pytest.mark.skip\ndef test_d(): pass\n"


def test_the_last_line_adds_up_all_suites(project: Project) -> None:
    project.suite("unit", PASS + FAIL)
    project.suite("service", PASS + ERROR + SKIP)
    project.suite("docs", PASS)
    sums = project.run()
    assert (sums.passed, sums.failed, sums.skipped) == (3, 2, 1)
    assert sums.line() == "3 passed, 2 failed"


def test_a_skipped_integration_test_is_a_failure(project: Project) -> None:
    project.suite("integration", PASS + SKIP, must_run=True)
    sums = project.run()
    assert sums.problems == ["integration: 1 tests were skipped, and must not be"]
    assert sums.line() == "1 passed, 1 failed"


@pytest.mark.parametrize("code", ["", None])
def test_integration_tests_that_do_not_exist_are_a_failure(project: Project, code: str | None) -> None:
    project.suite("integration", code, must_run=True)
    sums = project.run()
    assert len(sums.problems) == 1
    assert sums.line() == "0 passed, 1 failed"


def test_a_suite_may_be_without_the_tests_that_the_user_chose(project: Project) -> None:
    project.suite("unit", PASS)
    project.suite("integration", "def test_other(): pass\n", must_run=True)
    assert project.run("-k", "test_a").line() == "1 passed, 0 failed"


def test_tests_that_cannot_be_collected_are_a_failure(project: Project) -> None:
    project.suite("unit", "import nothing_of_that_name\n")
    assert project.run().line().endswith(("1 failed", "2 failed"))


def test_a_suite_over_its_budget_is_interrupted_and_cleans_up(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo, mark = tmp_path / "fifo", tmp_path / "cleaned"
    os.mkfifo(fifo)

    class Popen(subprocess.Popen[bytes]):
        """Its budget is over as soon as its test runs."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout == 1234:
                assert fifo.read_text() == "ready"
                raise subprocess.TimeoutExpired("pytest", timeout)
            return super().wait(timeout)

    monkeypatch.setattr(suites.subprocess, "Popen", Popen)
    project.suite("service", HANGS.format(fifo=str(fifo), mark=str(mark)), budget_s=1234)
    sums = project.run()
    assert "service: not done after 1234 s" in sums.problems
    assert mark.exists()


def test_the_suites_after_a_broken_one_run_as_well(project: Project) -> None:
    project.suite("service", "import nothing_of_that_name\n")
    project.suite("unit", PASS)
    assert project.run().passed == 1


def test_a_process_that_a_test_left_is_named_and_killed(project: Project, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    code = (
        "import subprocess\n"
        "def test_leaves():\n"
        f"    out = open({str(fifo)!r}, 'w')\n"
        "    subprocess.Popen(['sleep', '1000'], stdout=out, start_new_session=True)\n"
    )
    project.suite("unit", code)
    problems = project.run().problems
    assert [problem.rpartition(" ")[0].split()[:3] for problem in problems] == [["left", "behind:", "process"]]
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_container_of_this_run_is_named_and_removed_and_those_of_others_stay(
    project: Project, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(suites.tempfile, "mkdtemp", lambda **_: str(tmp_path / "run-folder"))
    (tmp_path / "run-folder").mkdir()
    ours = engine_module.Container("a" * 64, ("/usr/x", str(tmp_path / "run-folder" / "tmp" / "state")))
    other = engine_module.Container("b" * 64, (str(tmp_path / "run-folder-2" / "state"),))
    engine.found = [ours, other]
    project.suite("unit", PASS)
    assert project.run().problems == ["left behind: container aaaaaaaaaaaa"]
    assert engine.removed == ["a" * 64]


def test_chosen_files_run_by_themselves(project: Project) -> None:
    project.suite("unit", PASS)
    project.suite("service", FAIL)
    choice = suites.chosen(["-x", "tests/unit/test_unit.py::test_a"], project.suites)
    assert [(suite.paths, suite.must_run) for suite in choice.suites] == [(("tests/unit/test_unit.py::test_a",), False)]
    assert choice.options == ("-x",)


def test_a_full_run_tries_more_examples_and_has_more_time(project: Project) -> None:
    project.suite("unit", PASS, budget_s=5)
    choice = suites.chosen(["--full"], project.suites)
    assert choice.options == ("--hypothesis-profile=full",)
    assert [suite.budget_s for suite in choice.suites] == [5 * suites.FULL_BUDGET_FACTOR]
    assert choice.partial is False


def test_ctrl_c_lets_the_tests_clean_up_and_ends_with_the_sums(tmp_path: Path) -> None:
    fifo, mark = tmp_path / "fifo", tmp_path / "cleaned"
    os.mkfifo(fifo)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    (tmp_path / "tests" / "unit" / "test_unit.py").write_text(HANGS.format(fifo=str(fifo), mark=str(mark)))
    driver = (
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\n"
        "import pathlib, _suites\n"
        "class Engine:\n    containers = staticmethod(lambda label: [])\n"
        "    from_environment = staticmethod(lambda: Engine())\n"
        f"_suites.ROOT = pathlib.Path({str(tmp_path)!r}); _suites.Engine = Engine\n"
        "sys.exit(_suites.main(['tests/unit']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", driver], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert fifo.read_text() == "ready"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert mark.exists()
    assert err.splitlines()[-1] == "test: interrupted"
    assert out.splitlines()[-1].startswith("1 passed, ")
