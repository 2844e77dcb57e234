"""Tables ``[[pools]]``: what is read of them, and what is said of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from enclaved.cli import enclaved
from enclaved.config import Settings, load
from enclaved.daemon._reload import POOLS, is_live
from enclaved.model import PoolPlan, SandboxRequest

GOOD = """
[limits]
cpu_max = 4.0

[[pools]]
id = "py"
size = 2
image = "x:1"
memory_limit_bytes = 1048576
tools = ["python_executor"]
env_vars = {A = "b"}
labels = {team = "a"}
preload = ["json", "os.path"]
member_age_max_s = 60.0
refill_per_s = 2.0
"""


def settings_of(folder: Path, text: str) -> Settings:
    path = folder / "config.toml"
    path.write_text(text)
    return load(path, environ={}).settings


def test_a_pool_is_read_with_all_that_it_says(tmp_path: Path) -> None:
    (pool,) = settings_of(tmp_path, GOOD).pools
    request = SandboxRequest(
        image="x:1", memory_limit_bytes=1048576, tools={"python_executor": {}}, env_vars={"A": "b"}
    )
    plan = PoolPlan(2, request, {"team": "a"}, (), ("json", "os.path"), 60.0, 2.0)
    assert (pool.id, pool.plan()) == ("py", plan)


MISTAKES = {
    "size = 1": "line 16: pools[1] (no id): id is missing",
    'id = "b"': "line 16: pools[1] (b): size is missing",
    'id = "b"\nsize = 0': "line 18: pools[1] (b): size must be from 1 to 100, is 0",
    'id = "b"\nsize = "2"': "line 18: pools[1] (b): size must be a valid integer",
    'id = "No Id"\nsize = 1': "line 17: pools[1] (No Id): id",
    'id = "py"\nsize = 1': "line 17: pools[1] (py): id names 'py' a second time",
    'id = "b"\nsize = 1\ncolour = 1': "line 19: pools[1] (b): colour is unknown",
    'id = "b"\nsize = 1\npreload = ["a b"]': "pools[1] (b): preload[0] must be the name of a module",
    'id = "b"\nsize = 1\nrefill_per_s = 0.0': "line 19: pools[1] (b): refill_per_s must be from 0.01 to 100",
}


@pytest.mark.parametrize(("table", "said"), MISTAKES.items())
def test_a_mistake_is_named_with_its_place_and_harms_no_other_pool(tmp_path: Path, table: str, said: str) -> None:
    found = settings_of(tmp_path, f"{GOOD}[[pools]]\n{table}\n")
    assert [pool.id for pool in found.pools] == ["py"]
    assert any(said in problem for problem in found.bad_pools), found.bad_pools


def test_the_check_refuses_what_the_daemon_would_leave_out(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(GOOD)
    assert CliRunner().invoke(enclaved, ["config", "check", str(path)]).exit_code == 0
    path.write_text(f"{GOOD}[[pools]]\nsize = 1\n")
    checked = CliRunner().invoke(enclaved, ["config", "check", str(path)])
    assert checked.exit_code == 2
    shown = CliRunner().invoke(enclaved, ["config", "show", "--config", str(path)])
    assert shown.exit_code == 0
    assert '[[pools]]\nid = "py"\nsize = 2\n' in shown.output


def test_pools_take_effect_without_a_restart() -> None:
    assert is_live(POOLS)
