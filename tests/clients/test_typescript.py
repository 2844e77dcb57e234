"""The TypeScript package: made by scripts/gen-stubs, installed as users install it, and used by the example."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks

EXAMPLE = ROOT / "examples" / "clients" / "typescript"
PACKAGE = ROOT / "dist" / "typescript"
PATIENCE_S = 180.0
PRINTED = """\
run: 42 EXITED 0
ONE
TWO
stream: EXITED
file: forty-two
error: InvalidArgument: parameters.code: must be a valid string (Python code to execute)
error: reason INVALID_REQUEST of enclaved.ms-enclave
error: field parameters.code: must be a valid string (Python code to execute)
deleted: reason SANDBOX_NOT_FOUND of enclaved.ms-enclave
"""

pytestmark = pytest.mark.docker


def run(*command: str | Path, folder: Path, **variables: str) -> str:
    """Runs a command, which must succeed, and returns what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as a project of its own, with the packed stubs installed and everything compiled."""
    run(sys.executable, ROOT / "scripts" / "gen-stubs", "typescript", folder=ROOT)
    folder = tmp_path_factory.mktemp("typescript")
    for name in ("client.ts", "package.json", "tsconfig.json", ".npmrc"):
        shutil.copy(EXAMPLE / name, folder)
    archive = run("npm", "pack", "--silent", PACKAGE, folder=folder).strip()
    manifest = json.loads((folder / "package.json").read_text())
    manifest["dependencies"]["ms-enclave"] = f"file:{archive}"
    (folder / "package.json").write_text(json.dumps(manifest))
    run("npm", "install", "--no-audit", "--no-fund", "--prefer-offline", folder=folder)
    run("npm", "run", "--silent", "build", folder=folder)
    return folder


@pytest.mark.parametrize("way", ["unix socket", "TCP"])
def test_the_example_prints_what_it_shows(project: Path, addresses: Mapping[str, str], way: str) -> None:
    assert run("node", "build/client.js", folder=project, MS_ENCLAVE_ADDRESS=addresses[way]) == PRINTED


def test_the_package_has_the_whole_contract_and_the_sdks_version(project: Path) -> None:
    names = {path.name for path in (project / "node_modules/ms-enclave/ms_enclave/v1").glob("*.js")}
    assert names == {f"{path.stem}_pb.js" for path in (ROOT / "proto/ms_enclave/v1").glob("*.proto")}
    from ms_enclave import __version__

    manifest = json.loads((project / "node_modules/ms-enclave/package.json").read_text())
    assert (manifest["name"], manifest["version"]) == ("ms-enclave", __version__)


def test_the_code_of_the_pages_compiles(project: Path) -> None:
    page = [block.text for block in blocks("docs/clients.md", "ts")]
    readme = re.findall(r"```ts\n(.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL)
    assert page
    assert readme
    folder = project / "pages"
    folder.mkdir()
    for number, text in enumerate([*page, *readme]):
        (folder / f"page{number}.ts").write_text(text)
    flags = ("--noEmit", "--strict", "--target", "ES2022", "--module", "NodeNext", "--types", "node")
    run("npx", "tsc", *flags, *(str(path) for path in folder.glob("*.ts")), folder=project)


def test_the_page_shows_what_the_example_prints() -> None:
    assert PRINTED in [f"{block.text}\n".replace("\n\n", "\n") for block in blocks("docs/clients.md", "text")]


def test_nothing_names_the_host_of_a_registry() -> None:
    assert not any(EXAMPLE.glob("package-lock.json"))
    assert "package-lock=false" in (EXAMPLE / ".npmrc").read_text()
