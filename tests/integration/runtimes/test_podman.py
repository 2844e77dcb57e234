"""Podman takes less than the profile needs, and the daemon says so instead of serving."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiodocker
import pytest

from tests.conftest import SCRIPTS
from tests.integration.failures.ground import Ground, until

IMAGE = "localhost/nothing:1"


@pytest.fixture(scope="module")
def podman() -> str:
    """Podman, which Debian has; it is installed if need be."""
    if shutil.which("podman") is None:
        done = subprocess.run(
            [sys.executable, SCRIPTS / "_debian.py", "podman"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.fail(f"Podman cannot be installed: {done.stderr.strip()}", pytrace=False)
    return shutil.which("podman") or ""


@pytest.fixture
async def engine(podman: str) -> AsyncIterator[str]:
    """The address of a Podman service with files and namespaces of its own, which end with it."""
    folder = Path(tempfile.mkdtemp(prefix="po", dir="/tmp"))
    url = f"unix://{folder / 'podman.sock'}"
    before = _groups()
    process = _started(podman, folder, url)
    try:
        await until((folder / "podman.sock").exists, "Podman's socket")
        async with aiodocker.Docker(url) as docker:
            await docker.images.import_image(_image())
        yield url
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)
        for group in sorted(_groups() - before, reverse=True):  # Podman leaves those of containers that never started
            group.rmdir()


def _groups() -> set[Path]:
    """The control groups below that of all sandboxes, in each hierarchy."""
    root = Path("/sys/fs/cgroup")
    return {
        group for form in ("enclaved/**/", "*/enclaved/**/") for group in root.glob(form) if group.name != "enclaved"
    }


def _started(podman: str, folder: Path, url: str) -> subprocess.Popen[bytes]:
    command = [
        *("setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--net", "--fork", "--kill-child=KILL"),
        *("--mount-proc", podman, "--root", folder / "root", "--runroot", folder / "run", "--tmpdir", folder / "tmp"),
        *("--cgroup-manager", "cgroupfs", "--events-backend", "file", "--storage-driver", "vfs"),
        *("system", "service", "--time=0", url),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "XDG_"))}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _image() -> bytes:
    """An archive as `docker save` makes it, of an image with one empty folder."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        folder = tarfile.TarInfo("etc")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
    config = b'{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}'
    config = config.replace(b"%s", hashlib.sha256(layer.getvalue()).hexdigest().encode())
    manifest = f'[{{"Config":"config.json","RepoTags":["{IMAGE}"],"Layers":["layer.tar"]}}]'.encode()
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, content in (("config.json", config), ("layer.tar", layer.getvalue()), ("manifest.json", manifest)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return whole.getvalue()


async def test_the_daemon_does_not_serve_on_podman_and_names_what_podman_does_not_take(engine: str) -> None:
    ground = Ground()
    try:
        daemon = ground.start_daemon("--engine-url", engine, "--images-default", IMAGE)
        assert await daemon.ended() not in (0, 1)
        last = daemon.text.splitlines()[-1]
        assert last.startswith("enclaved: no sandbox can be made here")
        assert 'unknown mount option "nr_inodes=' in last
        assert '"ready"' not in daemon.text
        daemon.check_log()
    finally:
        ground.clear()
