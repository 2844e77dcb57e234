"""The commands of docs/http.md do what the page shows, and its table has every route."""

import asyncio
import os
import re
import subprocess

from enclaved.gateway.refusals import STATUS
from tests.docs.pages import ROOT, blocks
from tests.service.daemons import daemon, settings_in, short_directory
from tests.service.http.test_openapi import ROUTES

PAGE = "docs/http.md"
TEXT = (ROOT / PAGE).read_text()


async def test_the_commands_print_what_the_page_shows():
    shown = [block for block in blocks(PAGE, "bash") if block.shown_output]
    assert len(shown) == 4
    script = "set -euo pipefail\n" + "".join(block.text for block in shown)
    async with short_directory() as folder:
        settings = settings_in(folder, listen__http="127.0.0.1:0", http__api_keys="a key")
        async with daemon(settings) as running:
            environment = {**os.environ, "URL": f"http://{running.addresses.http}", "KEY": "a key"}
            command = ["bash", "-c", script]
            done = await asyncio.to_thread(
                subprocess.run, command, env=environment, capture_output=True, text=True, check=False, timeout=100
            )
    assert (done.stdout, done.stderr) == ("".join(block.shown_output or "" for block in shown), "")


def test_every_route_is_on_the_page():
    listed = re.findall(r"^\| `(GET|POST|DELETE) (/[^?`]*)", TEXT, re.MULTILINE)
    assert set(listed) == ROUTES


def test_every_status_is_on_the_page():
    assert {str(code) for code in STATUS.values()} <= set(re.findall(r"^\| (\d{3}) \|", TEXT, re.MULTILINE))
