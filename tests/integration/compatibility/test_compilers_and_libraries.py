"""Compilers, Node.js and the libraries for numbers run under the whole profile as they do elsewhere."""

from __future__ import annotations

import asyncio
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator

import pytest
from ms_enclave.sandbox.boxes import Sandbox, SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType

from tests.conftest import SCRIPTS
from tests.docs.pages import blocks

from .heavy import FIGURE, PYTHON, SHELL

IMAGE = "ms-enclave/toolchain:12"
HEADING = "An image with compilers"
LIMITS = {"working_dir_size": "1g", "tmp_size": "512m", "pids_limit": 512}


@pytest.fixture(scope="module")
def image(docker_engine: None) -> str:
    """The image with compilers; it is built if need be."""
    command = [sys.executable, SCRIPTS / "build-image", "--recipe", "toolchain"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"scripts/build-image --recipe toolchain failed: {done.stderr.strip()}", pytrace=False)
    return IMAGE


@pytest.fixture(scope="module")
def toolchain(image: str) -> Iterator[Sandbox]:
    """A sandbox as large as compilers want it."""
    config = DockerSandboxConfig(image=image, memory_limit="2g", resource_limits=LIMITS)
    made = SandboxFactory.create_sandbox(SandboxType.DOCKER, config)
    asyncio.run(made.start())
    yield made
    asyncio.run(made.cleanup())


@pytest.mark.parametrize("isolated", [True, False], ids=["a fresh interpreter", "one that keeps its variables"])
@pytest.mark.parametrize("name", PYTHON)
async def test_libraries_work(toolchain: Sandbox, name: str, isolated: bool) -> None:
    result = await toolchain.execute_tool("python_executor", {"code": PYTHON[name].code, "isolated": isolated})
    assert (result.output, result.error) == (PYTHON[name].output, None)


@pytest.mark.parametrize("name", SHELL)
async def test_compilers_and_node_work(toolchain: Sandbox, name: str) -> None:
    result = await toolchain.execute_tool("shell_executor", {"command": SHELL[name].code})
    assert (result.output, result.error) == (SHELL[name].output, None)


async def test_matplotlib_draws_a_figure_that_is_a_whole_png(toolchain: Sandbox) -> None:
    result = await toolchain.execute_tool("python_executor", {"code": FIGURE})
    assert (result.output, result.error) == ("saved\n", None)
    picture = await toolchain.read_file("/sandbox/figure.png")
    width, height, pixels = decoded(picture)
    assert (width, height) == (200, 100)
    assert len(set(pixels)) > 10


def decoded(picture: bytes) -> tuple[int, int, bytes]:
    """Reads the size and the filtered pixels of a PNG. Raises for one that is cut short or damaged."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    at, size, data, kind = 8, (0, 0), b"", b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", picture[at : at + 8])
        content = picture[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack(">I", picture[at + 8 + length : at + 12 + length])
        assert zlib.crc32(kind + content) == checksum
        if kind == b"IHDR":
            size = struct.unpack(">II", content[:8])
        data += content if kind == b"IDAT" else b""
        at += 12 + length
    return *size, zlib.decompress(data)


async def test_an_archive_of_more_than_the_default_room_is_unpacked(toolchain: Sandbox) -> None:
    command = (
        "head -c 200M /dev/zero > big && tar cf big.tar big && rm big && tar xf big.tar && stat -c %s big && rm big*"
    )
    result = await toolchain.execute_tool("shell_executor", {"command": command, "timeout": 60})
    assert (result.output, result.error) == ("209715200\n", None)


async def test_the_example_of_the_page_prints_what_the_page_says(image: str) -> None:
    (example,) = (block for block in blocks("docs/operations.md", "python") if block.heading == HEADING)
    done = await asyncio.create_subprocess_exec(sys.executable, "-c", example.text, stdout=asyncio.subprocess.PIPE)
    said, _ = await done.communicate()
    assert (said.decode(), done.returncode) == (example.shown_output, 0)
