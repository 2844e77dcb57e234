"""docs/keys.md: its configurations are valid, its commands work, its program runs against a daemon over TLS."""

from __future__ import annotations

import asyncio
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from ms_enclave._transports.credentials import CA_VARIABLE, TOKEN_VARIABLE

from enclaved.cli import enclaved
from enclaved.config import load
from enclaved.core.access import METHODS
from enclaved.core.policy import PolicyLimits, built_in_rules
from enclaved.core.tokens.live import LOOK_EVERY_S
from enclaved.daemon import _tls
from tests.docs.pages import ROOT, blocks
from tests.service.daemons import PATIENCE_S, daemon
from tests.service.keys.ground import CERTIFICATES, token, with_certificate

PAGE = "docs/keys.md"
TEXT = (ROOT / PAGE).read_text()


@pytest.mark.parametrize("block", blocks(PAGE, "toml"), ids=str)
def test_every_configuration_of_the_page_is_valid(tmp_path: Path, block):
    file = tmp_path / "config.toml"
    file.write_text(block.text)
    settings = load(file, environ={}).settings
    assert not settings.listen.tcp.startswith("127.")


def test_the_commands_of_the_page_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ENCLAVED_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("ENCLAVED_CONFIG", "/dev/null")
    lines = [
        line for block in blocks(PAGE, "shell") for line in block.text.splitlines() if line.startswith("enclaved ")
    ]
    assert len(lines) == 4
    for line in lines:
        done = CliRunner().invoke(enclaved, shlex.split(line)[1:])
        assert (done.exit_code, done.exception) == (0, None)


async def test_the_program_of_the_page_prints_what_it_shows(tmp_path: Path, folder: Path):
    [block] = blocks(PAGE, "python")
    settings = with_certificate(folder)
    secret = token(settings)
    async with daemon(settings) as running:
        program = block.text.replace("box.example:50061", running.addresses.tcp)
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{ROOT}/sdk_python",
            TOKEN_VARIABLE: secret,
            CA_VARIABLE: str(CERTIFICATES / "ca.crt"),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", program, env=environment, stdout=-1, stderr=-1, cwd=tmp_path
        )
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()
    assert (out.decode(), process.returncode) == (block.shown_output, 0), err.decode()


def test_the_roles_and_numbers_of_the_page_are_those_of_the_code():
    for name in ("default", "monitor"):
        scopes = ", ".join(f"`{scope}`" for scope in built_in_rules(PolicyLimits()).roles[name].scopes)
        assert f"| `{name}` | {scopes} |" in TEXT
    assert all(f"| `{scope}` |" in TEXT for scope in METHODS.values())
    assert (LOOK_EVERY_S, f"every {_tls.LOOK_EVERY_S:g} s" in TEXT) == (1.0, True)
