"""An engine whose own filter of system calls was replaced by one that refuses next to nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enclaved.daemon import Unprotected
from tests.integration.engine.private import private_engine
from tests.service.daemons import daemon, settings_in, short_directory

REFUSES_TWO = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["personality", "mbind"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
}


async def test_the_daemon_does_not_serve_where_the_engines_filter_refuses_two_calls(
    default_image: str, tmp_path: Path
) -> None:
    profile = tmp_path / "filter.json"
    profile.write_text(json.dumps(REFUSES_TWO))
    async with private_engine(filter_file=profile) as engine, short_directory() as folder:
        with pytest.raises(Unprotected) as refusal:
            async with daemon(settings_in(folder, engine__url=engine.url), runtime=None):
                pass
    text = str(refusal.value)
    assert '"engine_filter"' in text.partition("protections = [")[2]
    for name in ("get_mempolicy", "set_mempolicy", "move_pages", "migrate_pages"):
        assert name in text
    assert "personality" not in text
    assert "--seccomp-profile" in text
