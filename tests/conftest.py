"""What all tests share: an environment without the user's settings, and Docker for those that are marked so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
DEFAULT_IMAGE = "ms-enclave/python:3.11"
SHORT_BYTES = 24
"""Longest temporary directory below which pytest's directories still have room for sockets, with 107 bytes in all."""

# Before anything asks for it, and for the processes that tests start as well.
if len(os.fsencode(tempfile.gettempdir())) > SHORT_BYTES:
    os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"

# A shell that runs something in the background has it ignore Ctrl-C, and all that it starts inherits that.
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)

# Without deadlines: how long an example takes says nothing on a machine that does other work as well.
settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile("full", max_examples=2000, deadline=None)
settings.load_profile("quick")


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_user() -> Iterator[None]:
    """Tests find neither the user's daemon nor the user's configuration, and no web proxy before this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("ENCLAVED_", "MS_ENCLAVE_")) and name != "MS_ENCLAVE_TEST_RUN":
                patch.delenv(name)
        patch.delenv("PYTHONUNBUFFERED", raising=False)  # programs that tests start buffer as those of users do
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, ",".join(filter(None, [os.environ.get(name), "localhost", "127.0.0.1"])))
        yield


@pytest.fixture(scope="session")
def docker_engine() -> None:
    """Finds a running Docker engine, or installs and starts one where that is allowed. Fails where it is not."""
    _run_script("ensure-engine")


@pytest.fixture(scope="session")
def default_image(docker_engine: None) -> str:
    """Returns the name of the default image, which the engine has; it is built if need be."""
    _run_script("ensure-image", "--built")
    return DEFAULT_IMAGE


@pytest.fixture(autouse=True)
def _docker_where_marked(request: pytest.FixtureRequest) -> None:
    """Tests with the marker ``docker`` have the engine and the default image. They are never skipped."""
    if request.node.get_closest_marker("docker"):
        request.getfixturevalue("default_image")


def _run_script(name: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, SCRIPTS / name, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"scripts/{name} failed: {done.stderr.strip()}", pytrace=False)
