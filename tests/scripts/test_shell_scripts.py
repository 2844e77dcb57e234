"""The shell scripts, in a made-up checkout whose Python only writes down what it is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.scripts.loading import SCRIPTS

RECORDING_PYTHON = """#!/usr/bin/env bash
case "$*" in
  *version_info*3,\\ 11*) exit "${OLD:-0}" ;;
  *"import ensurepip"*) exit "${NO_VENV:-0}" ;;
  *version_info*) echo python3.11-venv; exit 0 ;;
esac
echo "${*//$ROOT/ROOT}" >> "$ROOT/calls"
case "$*" in
  *_console.py*venv*--clear*) mkdir -p "$ROOT/.venv/bin"; cp "$0" "$ROOT/.venv/bin/python" ;;
  *"${FAILING:-nothing fails}"*) echo "it failed" >&2; exit 3 ;;
esac
"""


class Checkout:
    """A folder that looks like the project to its scripts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {"PATH": f"{root}/bin:{os.environ['PATH']}", "ROOT": str(root), "HOME": str(root)}
        for folder in ("scripts", "bin", "sdk_python/ms_enclave", ".ci"):
            (root / folder).mkdir(parents=True)
        for path in SCRIPTS.iterdir():
            if path.is_file():
                shutil.copy(path, root / "scripts" / path.name)
        (root / "pyproject.toml").write_text("[project]\n")
        (root / "sdk_python" / "ms_enclave" / "__init__.py").write_text('__version__ = "1"\n')
        self.program("python3", RECORDING_PYTHON)
        self.program("systemd-analyze", "#!/bin/sh\n")

    def program(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "scripts" / command[0], *command[1:]],
            cwd="/",
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        """Returns what the recording Python was asked since the last time."""
        path = self.root / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "check out")


def test_the_environment_is_made_and_the_package_installed(checkout: Checkout) -> None:
    done = checkout.run("ensure-venv")
    assert (done.returncode, done.stderr) == (0, "")
    made, installed = checkout.calls()
    assert made.endswith("-m venv --clear ROOT/.venv")
    assert installed.endswith(
        "-m pip --disable-pip-version-check --no-input install --progress-bar off --editable ROOT"
    )


def test_an_environment_that_is_up_to_date_is_left_alone(checkout: Checkout) -> None:
    checkout.run("ensure-venv", "dev")
    checkout.calls()
    for extra in ([], ["dev"]):
        done = checkout.run("ensure-venv", *extra)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert checkout.calls() == []


def test_a_changed_pyproject_installs_again_into_the_same_environment(checkout: Checkout) -> None:
    checkout.run("ensure-venv")
    checkout.calls()
    (checkout.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert checkout.run("ensure-venv").returncode == 0
    (installed,) = checkout.calls()
    assert installed.endswith("install --progress-bar off --editable ROOT")


def test_the_extra_is_installed_after_the_base(checkout: Checkout) -> None:
    checkout.run("ensure-venv")
    checkout.calls()
    assert checkout.run("ensure-venv", "dev").returncode == 0
    (installed,) = checkout.calls()
    assert installed.endswith("--editable ROOT[dev]")


def test_a_failed_installation_is_tried_again_next_time(checkout: Checkout) -> None:
    assert checkout.run("ensure-venv", FAILING="pip").returncode == 3
    checkout.calls()
    assert checkout.run("ensure-venv").returncode == 0
    assert len(checkout.calls()) == 1


def test_without_a_new_enough_python_there_is_one_sentence(checkout: Checkout) -> None:
    done = checkout.run("ensure-venv", PYTHON="python3", OLD="1")
    assert done.returncode == 1
    assert done.stderr.startswith("ensure-venv: needs Python 3.11 or newer")
    assert checkout.calls() == []


def test_the_venv_module_is_installed_where_root_runs_debian(checkout: Checkout) -> None:
    checkout.program("id", "#!/bin/sh\necho 0\n")
    checkout.program("apt-get", "#!/bin/sh\n")
    assert checkout.run("ensure-venv", NO_VENV="1").returncode == 0
    assert checkout.calls()[0] == "ROOT/scripts/_debian.py python3.11-venv"


def test_without_root_the_missing_venv_module_is_one_sentence(checkout: Checkout) -> None:
    checkout.program("id", "#!/bin/sh\necho 1000\n")
    done = checkout.run("ensure-venv", NO_VENV="1")
    assert done.returncode == 1
    assert "sudo apt-get install python3.11-venv" in done.stderr
    assert checkout.calls() == []


def test_quickstart_goes_from_nothing_to_the_tour(checkout: Checkout) -> None:
    done = checkout.run("quickstart")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert checkout.calls()[2:] == [
        "ROOT/scripts/ensure-engine",
        "-m enclaved prepare --if-possible",
        "ROOT/scripts/ensure-image",
        "ROOT/examples/tour.py",
    ]


@pytest.mark.parametrize("step", ["ensure-engine", "ensure-image"])
def test_quickstart_stops_at_the_step_that_cannot_be_done(checkout: Checkout, step: str) -> None:
    done = checkout.run("quickstart", FAILING=step)
    assert (done.returncode, done.stderr) == (3, "it failed\n")
    assert checkout.calls()[-1] == f"ROOT/scripts/{step}"


def test_the_tests_are_prepared_like_the_quick_start(checkout: Checkout) -> None:
    assert checkout.run("test", "-x").returncode == 0
    _, installed, *rest = checkout.calls()
    assert installed.endswith("--editable ROOT[dev]")
    assert rest == [
        "ROOT/scripts/ensure-engine",
        "ROOT/scripts/ensure-image --built",
        "ROOT/scripts/build-image --recipe systemd",
        "ROOT/scripts/build-image --recipe toolchain",
        "ROOT/scripts/build-guest-runtime",
        "ROOT/scripts/ensure-prometheus",
        "ROOT/scripts/_suites.py -x",
    ]


def test_what_the_tests_of_the_unit_need_is_installed_where_it_is_missing(checkout: Checkout) -> None:
    checkout.run("ensure-venv", "dev")
    checkout.calls()
    (checkout.root / "bin" / "systemd-analyze").unlink()
    for name in ("bash", "readlink", "dirname", "cat", "cmp", "flock"):
        (checkout.root / "bin" / name).symlink_to(shutil.which(name) or name)
    assert checkout.run("test", PATH=str(checkout.root / "bin")).returncode == 0
    assert checkout.calls()[0] == "ROOT/scripts/_debian.py systemd"


def test_all_checks_run_after_a_failed_one_and_show_what_it_wrote(checkout: Checkout) -> None:
    checkout.run("ensure-venv", "dev")
    for tool, text in {"ruff": "#!/bin/sh\necho wrong; exit 1\n", "mypy": "#!/bin/sh\n", "buf": "#!/bin/sh\n"}.items():
        checkout.program(tool, text)
        shutil.copy(checkout.root / "bin" / tool, checkout.root / ".venv" / "bin" / tool)
    (checkout.root / "proto").mkdir()
    done = checkout.run("check")
    assert done.returncode == 1
    lines = [line.split("  ")[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert lines[0] == "ruff format"
    assert lines[-1] == "architecture"
    assert "    wrong" in done.stdout.splitlines()
    assert [line.split()[-3] for line in done.stdout.splitlines() if line.startswith("mypy")] == ["ok", "ok"]


def test_one_check_can_be_chosen_by_its_name(checkout: Checkout) -> None:
    checkout.run("ensure-venv", "dev")
    done = checkout.run("check", "bash")
    assert done.returncode == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["bash", "ok"]]


@pytest.mark.parametrize(
    "script", sorted(path.name for path in SCRIPTS.iterdir() if path.is_file() and os.access(path, os.X_OK))
)
def test_every_script_explains_itself(script: str) -> None:
    done = subprocess.run([SCRIPTS / script, "--help"], capture_output=True, text=True, check=False, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {script}" in done.stdout or f"usage: scripts/{script}" in done.stdout
