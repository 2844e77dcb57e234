"""``enclaved token``: what it prints, and what it keeps."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from enclaved.cli import enclaved
from enclaved.core.tokens import Tokens
from enclaved.metrics import Metrics

DAY_S = 86400


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory that is not there yet."""
    monkeypatch.setenv("ENCLAVED_CONFIG", "/dev/null")
    monkeypatch.setenv("ENCLAVED_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def token(*arguments: str) -> Result:
    return CliRunner().invoke(enclaved, ["token", *arguments])


def test_a_secret_is_all_that_standard_output_has_and_it_opens(state: Path):
    made = token("create", "ci")
    assert re.fullmatch(r"mse_[A-Za-z0-9_-]{43}\n", made.stdout)
    assert re.search(r"token [0-9a-f]{12} for ci \(role default\) expires 20.*not shown again", made.stderr)
    assert stat.S_IMODE((state / "tokens.sqlite3").stat().st_mode) == 0o600
    tokens = Tokens(state, Metrics(version="0"))
    assert tokens.find(made.stdout.strip())
    tokens.close()
    assert made.stdout.strip() not in token("list").output + token("list", "--json").output


@pytest.mark.parametrize(
    ("period", "seconds"), [("30m", 1800), ("12h", 43200), ("90d", 90 * DAY_S), ("4w", 28 * DAY_S), ("1y", 365 * DAY_S)]
)
def test_a_token_expires_when_it_is_said(state: Path, period: str, seconds: int):
    [shown] = [json.loads(token("create", "ci", "--expires", period, "--json").stdout)]
    tokens = Tokens(state, Metrics(version="0"))
    [found] = [tokens.find(shown["token"])]
    tokens.close()
    assert found
    assert found.expires_at == found.created_at + seconds


def test_never_is_never_and_json_says_null(state: Path):
    made = json.loads(token("create", "ci", "--role", "monitor", "--expires", "never", "--json").stdout)
    assert (made["expires_at"], made["role"], made["state"], made["last_used_at"]) == (None, "monitor", "valid", None)
    [listed] = json.loads(token("list", "--json").stdout)
    assert listed == {name: value for name, value in made.items() if name != "token"}


@pytest.mark.parametrize("period", ["", "0d", "-1d", "3x", "1.5d", "9999999d", "forever", "90 d"])
def test_a_period_that_is_none_is_refused(state: Path, period: str):
    done = token("create", "ci", "--expires", period)
    assert (done.exit_code, state.exists()) == (2, False)
    assert "write 90d, 12h, 30m, 4w, 1y or never" in done.output


def test_revoked_tokens_are_named_and_stay_in_the_list(state: Path):
    ids = {json.loads(token("create", "ci", "--json").stdout)["id"] for _ in range(2)}
    revoked = token("revoke", "ci")
    assert {line.split()[1] for line in revoked.stdout.splitlines()} == ids
    assert {one["state"] for one in json.loads(token("list", "--json").stdout)} == {"revoked"}
    assert token("list").stdout.splitlines()[0].split()[:4] == ["ID", "NAME", "ROLE", "STATE"]


def test_what_goes_wrong_is_one_line(state: Path):
    for arguments, said in (
        (("revoke", "nobody"), "no token 'nobody' is there to be revoked; 'enclaved token list' shows them"),
        (("create", "a b"), "name: must have 1 to 64 of A-Z a-z 0-9"),
        (("create", "ci", "--state-dir", "/proc/x"), "run this as root or as the daemon's user"),
    ):
        done = token(*arguments)
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert said in done.stderr


def test_without_a_file_the_list_is_empty_and_none_is_made(state: Path):
    assert json.loads(token("list", "--json").stdout) == []
    assert not state.exists()


@pytest.mark.parametrize("command", [("list",), ("revoke", "ci")])
def test_a_state_directory_that_is_named_and_not_there_is_a_mistake(tmp_path: Path, command: tuple[str, ...]):
    ended = token(*command, "--state-dir", str(tmp_path / "typo"))
    assert ended.exit_code == 2
    assert "is no directory; name the state directory of the daemon" in ended.stderr
    assert not (tmp_path / "typo").exists()
