"""The commands of docs/hardening.md set up an engine on which sandboxes run. About 15 s.

They are run as they stand, as root, in namespaces of their own, with copies of /etc, /run and /var/lib. Two things of a
real machine are played: `systemctl`, which here writes down its arguments, and the kernel's control groups, which
nobody keeps in slices.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import aiodocker
import pytest
import pytest_asyncio

from tests.conftest import DEFAULT_IMAGE
from tests.docs.pages import ROOT, Block, blocks
from tests.integration.engine.private import PrivateEngine, _first_child, _namespaces
from tests.integration.engine.scenarios import Site, site
from tests.integration.failures.ground import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

PAGE = "docs/hardening.md"
FIRST_UID = 1_000_000_000
PLAYED = f"""
sudo() {{ "$@"; }}
systemctl() {{ echo "systemctl $*"; }}
enclaved() {{ PYTHONPATH={ROOT}:{ROOT / "sdk_python"} {sys.executable} -P -m enclaved "$@"; }}
set -euo pipefail
cd {ROOT}
"""
CALLED = [
    "systemctl daemon-reload",
    "systemctl enable --now enclaved-engine.service",
    "systemctl daemon-reload",
    "systemctl restart enclaved.service",
]


class LaidOut(PrivateEngine):
    """The engine of the page."""

    def __init__(self, folder: Path, holder: int) -> None:
        super().__init__(folder, holder)
        self.socket = folder / "run" / "enclaved-engine" / "docker.sock"
        self.url = f"unix://{self.socket}"
        self.data = folder / "lib" / "enclaved-engine"

    def lay_out(self) -> None:
        """Gives it a machine of its own, as far as it looks at it."""
        shutil.copytree("/etc", self.folder / "etc", symlinks=True)
        for place in ("run", "lib"):
            (self.folder / place).mkdir()
        engine = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
        (self.folder / "run" / "docker.sock").touch()
        self.in_its_mounts("mount", "--bind", engine, str(self.folder / "run" / "docker.sock"))
        for place, at in (("etc", "/etc"), ("lib", "/var/lib"), ("run", "/run")):
            self.in_its_mounts("mount", "--rbind", str(self.folder / place), at)
        (self.folder / "etc" / "enclaved").mkdir(exist_ok=True)
        shutil.copy(ROOT / "systemd" / "enclaved.toml", self.folder / "etc" / "enclaved" / "config.toml")
        # What systemd makes, by the unit's RuntimeDirectory and StateDirectory.
        (self.folder / "run" / "enclaved-engine").mkdir(mode=0o755)
        self.data.mkdir(mode=0o711)
        self.in_its_mounts("mount", "-t", "tmpfs", "-o", "size=700m,mode=0711", "tmpfs", "/var/lib/enclaved-engine")

    async def before_start(self) -> None:
        """Does what systemd does before it starts the engine where sandboxes may have a network."""
        dropin = self.folder / "etc" / "systemd" / "system" / "enclaved-engine.service.d" / "network.conf"
        before = [line.partition("=-")[2] for line in dropin.read_text().splitlines() if "ExecStartPre" in line]
        assert len(before) == 2
        await self.follow(Block(PAGE, 0, "", "bash", "\n".join(before)))

    async def follow(self, block: Block) -> str:
        """Runs the commands of a block; returns what they print."""
        command = [
            "nsenter",
            f"--target={self._holder}",
            "--pid",
            "--mount",
            "--net",
            "bash",
            "-c",
            PLAYED + block.text,
        ]
        environment = {**os.environ, "DOCKER_HOST": "unix:///run/docker.sock"}
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"{block}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def _launch(self) -> subprocess.Popen[bytes]:
        unit = (self.folder / "etc" / "systemd" / "system" / "enclaved-engine.service").read_text()
        (start,) = (line for line in unit.splitlines() if line.startswith("ExecStart="))
        config = self.folder / "etc" / "enclaved" / "engine.json"
        assert start == "ExecStart=dockerd --config-file=/etc/enclaved/engine.json"
        config.write_text(config.read_text().replace("cgroupdriver=systemd", "cgroupdriver=cgroupfs"))
        command = ["nsenter", f"--target={self._holder}", "--pid", "--mount", "--net"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *start.removeprefix("ExecStart=").split()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self._process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(default_image: str) -> AsyncIterator[LaidOut]:
    """The engine that the commands of the page have set up."""
    folder = Path(tempfile.mkdtemp(prefix="pe", dir="/tmp"))
    folder.chmod(0o711)
    holder = _namespaces()
    try:
        found = LaidOut(folder, await until(lambda: _first_child(holder.pid), "a process namespace"))
        try:
            found.lay_out()
            accounts, files, images, service, *_ = blocks(PAGE, "bash")
            called = await found.follow(accounts) and await found.follow(files)
            await found.start()
            assert DEFAULT_IMAGE in await found.follow(images)
            called += await found.follow(service)
            assert [line for line in called.splitlines() if line.startswith("systemctl")] == CALLED
            yield found
        finally:
            found.remove()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(engine: LaidOut) -> AsyncIterator[Site]:
    """A daemon on it."""
    async with site(engine) as found:
        yield found


async def test_sandboxes_run_on_the_engine_of_the_page(engine: LaidOut, here: Site):
    await here.create("box")
    assert await here.works("box")
    (container,) = await engine.containers()
    async with aiodocker.Docker(engine.url) as docker:
        pid = (await docker.containers.container(container).show())["State"]["Pid"]
        info = await docker.system.info()
    assert pid
    assert (info["LiveRestoreEnabled"], info["Containers"]) == (True, 1)
    await here.delete("box")


async def test_the_engine_of_the_page_is_what_the_page_says(engine: LaidOut, here: Site):
    said = await engine.follow(blocks(PAGE, "bash")[4])
    shown, _, examined = said.partition("\n")
    assert "name=userns" in shown
    assert shown.endswith(f"true /var/lib/enclaved-engine/{FIRST_UID}.{FIRST_UID}")
    findings = {line.split(":")[0].split()[-1]: line for line in examined.splitlines() if line[:1].strip()}
    assert findings["engine.user-namespaces"].startswith("ok ")
    assert findings["engine.live-restore"].startswith("ok ")
    assert "/run/enclaved-engine/docker.sock" in findings["engine.socket"]


async def test_the_service_of_the_page_has_the_engine_and_no_other(engine: LaidOut):
    etc = engine.folder / "etc"
    config = json.loads((ROOT / "systemd" / "enclaved-engine.json").read_text())
    settings = tomllib.loads((etc / "enclaved" / "config.toml").read_text())
    assert settings["engine"] == {"url": config["hosts"][0], "pull": False}
    dropin = (etc / "systemd" / "system" / "enclaved.service.d" / "engine.conf").read_text()
    assert f"SupplementaryGroups=\nSupplementaryGroups={config['group']} ms-enclave\n" in dropin


async def test_sandboxes_can_have_a_network_on_the_engine_of_the_page(engine: LaidOut):
    assert "restart enclaved-engine.service" in await engine.follow(blocks(PAGE, "bash")[5])
    await engine.before_start()
    await engine.restart()
    async with site(engine, '[roles.default]\nnetworks = ["none", "bridge"]\n') as there:
        await there.create("outside", network="bridge")
        assert await there.works("outside")
        await there.delete("outside")
