"""Machines with the service; every test in this folder needs Docker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.systemd import wheels
from tests.systemd.machine import DROPIN, Machine, machine

FOLDER = Path(__file__).parent
SCRIPTS = FOLDER.parents[1] / "scripts"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.docker)


@pytest.fixture(scope="session")
def wheel_folder(tmp_path_factory: pytest.TempPathFactory, default_image: str) -> Path:
    """A folder with two folders of wheels, ``old`` and ``new``; and the image of the machine is there."""
    command = [sys.executable, SCRIPTS / "build-image", "--recipe", "systemd"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"scripts/build-image --recipe systemd failed: {done.stderr.strip()}", pytrace=False)
    folder = tmp_path_factory.mktemp("wheels")
    wheels.folder(folder / "old", "1.0.0")
    wheels.folder(folder / "new", "1.0.1")
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(wheel_folder: Path) -> AsyncIterator[Machine]:
    """A machine with the service in its older version, as it is shipped but for the state directory."""
    async with machine(wheel_folder) as found:
        await prepare(found)
        await found.install("/wheels/old")
        await found.ok("usermod", "--append", "--groups", "ms-enclave", "alice")
        yield found


async def prepare(found: Machine) -> None:
    """Says where the state is; the watchdog is shorter than the shipped one, to spare the test its time."""
    name = Path(found.state_dir).name
    await found.write(DROPIN, f"[Service]\nStateDirectory={name}\nWatchdogSec=4\n")
    await found.write("/etc/enclaved/config.toml", f'[state]\ndir = "{found.state_dir}"\n')
