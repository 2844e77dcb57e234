"""Tokens: what is kept of them, who gets in, and what a look-up may tell."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enclaved.core.tokens import DATABASE_NAME, PREFIX, Tokens, TokenState, TokenStore, TokensUnusable, live
from enclaved.errors import InvalidRequest, NotFound, Unauthenticated, Unavailable
from enclaved.metrics import Metrics

DAY_S = 86400.0


class Clock:
    """A wall clock that stands still."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TokenStore]:
    """The file as the command has it, beside a daemon."""
    store = TokenStore(tmp_path / "state")
    yield store
    store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(store: TokenStore, clock: Clock) -> Iterator[Tokens]:
    tokens = Tokens(store.path.parent, Metrics(version="0"), clock)
    yield tokens
    tokens.close()


def test_a_secret_opens_as_soon_as_it_is_made_and_no_more_once_it_is_revoked(
    store: TokenStore, tokens: Tokens, clock: Clock
):
    assert tokens.find("mse_anything") is None
    secret, made = store.create("ci", role="grader", lifetime_s=DAY_S, now=clock.now)
    assert tokens.find(secret) == made
    assert (made.name, made.role, made.tenant) == ("ci", "grader", "default")
    store.revoke(made.id, now=clock.now)
    assert tokens.find(secret) is None


def test_a_secret_opens_until_it_expires_to_the_second(store: TokenStore, tokens: Tokens, clock: Clock):
    secret, _ = store.create("ci", lifetime_s=DAY_S, now=clock.now)
    clock.now += DAY_S - 1
    assert tokens.find(secret)
    clock.now += 1
    assert tokens.find(secret) is None


def test_one_that_does_not_expire_stays(store: TokenStore, tokens: Tokens, clock: Clock):
    secret, _ = store.create("ci", now=clock.now)
    clock.now += 10_000 * DAY_S
    assert tokens.find(secret)


def test_of_a_secret_only_the_digest_is_kept(store: TokenStore):
    secret, _ = store.create("ci")
    store.close()
    kept = b"".join(path.read_bytes() for path in store.path.parent.iterdir())
    assert secret.startswith(PREFIX)
    assert len(secret) == len(PREFIX) + 43
    assert secret.encode() not in kept
    assert secret.removeprefix(PREFIX).encode() not in kept
    assert hashlib.sha256(secret.encode()).digest() in kept


def test_the_file_is_for_its_owner_alone(store: TokenStore):
    old = os.umask(0)
    try:
        store.create("ci")
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in store.path.parent.iterdir()}
    assert modes[DATABASE_NAME] == 0o600
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_may_open_opens_nothing(store: TokenStore, tokens: Tokens, mode: int):
    secret, _ = store.create("ci")
    store.path.chmod(mode)
    with pytest.raises(Unavailable, match="cannot read its tokens"):
        tokens.find(secret)
    with pytest.raises(TokensUnusable, match="chmod 600"):
        store.tokens()
    store.path.chmod(0o600)
    assert tokens.find(secret)


def test_a_link_in_the_place_of_the_file_opens_nothing(store: TokenStore, tokens: Tokens, tmp_path: Path):
    other = TokenStore(tmp_path / "other")
    secret, _ = other.create("ci")
    other.close()
    store.path.parent.mkdir()
    store.path.symlink_to(other.path)
    with pytest.raises(Unavailable):
        tokens.find(secret)
    with pytest.raises(TokensUnusable):
        store.create("x")


def test_where_the_file_goes_away_nobody_gets_in_and_a_new_one_counts(store: TokenStore, tokens: Tokens):
    old, _ = store.create("ci")
    assert tokens.find(old)
    store.close()
    for path in store.path.parent.iterdir():
        path.unlink()
    assert tokens.find(old) is None
    new, _ = store.create("ci")
    assert tokens.find(new)
    assert tokens.find(old) is None


def test_many_who_make_the_first_token_at_once_all_get_one(tmp_path: Path):
    """The file must never be seen before it is whole."""
    for attempt in range(10):
        directory, together = tmp_path / str(attempt), threading.Barrier(8)

        def make(directory: Path = directory, together: threading.Barrier = together) -> str:
            store = TokenStore(directory)
            together.wait(60)
            try:
                return store.create("ci")[1].id
            finally:
                store.close()

        with ThreadPoolExecutor(8) as pool:
            made = {future.result() for future in [pool.submit(make) for _ in range(8)]}
        store = TokenStore(directory)
        assert {token.id for token in store.tokens()} == made
        store.close()
        assert [path.name for path in directory.iterdir()] == [DATABASE_NAME]


def test_a_file_of_another_program_is_left_alone(store: TokenStore):
    store.path.parent.mkdir()
    with sqlite3.connect(store.path) as other:
        other.execute("CREATE TABLE things (x)")
    other.close()
    store.path.chmod(0o600)
    before = store.path.read_bytes()
    with pytest.raises(TokensUnusable, match="another program"):
        store.create("ci")
    assert store.path.read_bytes() == before


def test_a_damaged_file_opens_nothing(store: TokenStore, tokens: Tokens):
    store.path.parent.mkdir()
    store.path.write_bytes(b"no database" * 1000)
    store.path.chmod(0o600)
    with pytest.raises(Unavailable):
        tokens.find("mse_x")


@pytest.mark.parametrize(
    "change", ["expires_at = 'soon'", "revoked_at = x'00'", "created_at = 'x'", "name = x'ff'", "role = ' \u00fc'"]
)
def test_a_row_that_is_no_token_opens_nothing_and_stops_nothing(
    store: TokenStore, tokens: Tokens, clock: Clock, change: str
):
    secret, _ = store.create("ci", now=clock.now)
    with sqlite3.connect(store.path, isolation_level=None) as other:
        other.execute(f"UPDATE tokens SET {change}")
    other.close()
    with pytest.raises(Unavailable):
        tokens.find(secret)
    with pytest.raises(TokensUnusable, match="it is damaged; put a backup in its place, or move it away"):
        store.tokens()


def test_a_name_revokes_all_its_tokens_and_an_unknown_one_says_so(store: TokenStore, tokens: Tokens):
    secrets = [store.create("ci")[0] for _ in range(3)]
    other, _ = store.create("other")
    assert len(store.revoke("ci")) == 3
    assert [tokens.find(secret) for secret in secrets] == [None] * 3
    assert tokens.find(other)
    with pytest.raises(NotFound, match="enclaved token list"):
        store.revoke("ci")


@pytest.mark.parametrize("name", ["", "-x", "a b", "a\n", 'x"', "ü", "a" * 65, "x/../y", "mse\0"])
def test_names_that_could_forge_a_log_line_are_refused(store: TokenStore, name: str):
    with pytest.raises(InvalidRequest, match="name: must have"):
        store.create(name)
    with pytest.raises(InvalidRequest, match="role: must have"):
        store.create("ci", role=name)
    assert not store.path.exists()


def test_tokens_that_open_nothing_any_more_leave_the_list_after_90_days(store: TokenStore, clock: Clock):
    store.create("expired", lifetime_s=1, now=clock.now)
    store.create("revoked", now=clock.now)
    store.revoke("revoked", now=clock.now)
    store.create("stays", now=clock.now)
    assert {one.name: one.state(clock.now + 2) for one in store.tokens()} == {
        "expired": TokenState.EXPIRED,
        "revoked": TokenState.REVOKED,
        "stays": TokenState.VALID,
    }
    store.create("new", now=clock.now + 91 * DAY_S)
    assert {one.name for one in store.tokens()} == {"stays", "new"}


def test_the_last_use_is_written_down_to_the_minute(store: TokenStore, tokens: Tokens, clock: Clock):
    secret, _ = store.create("ci", now=clock.now)
    clock.now += 1234.5
    assert tokens.find(secret)
    tokens.close()
    assert [one.last_used_at for one in store.tokens()] == [clock.now - clock.now % 60]


def test_every_wrong_secret_takes_the_same_way(store: TokenStore, tokens: Tokens, monkeypatch: pytest.MonkeyPatch):
    """Whatever it shares with one that is right: one digest, one look by a key of this process, one comparison."""
    secrets = [store.create(f"t{number}")[0] for number in range(20)]
    revoked, made = store.create("revoked")
    store.revoke(made.id)
    compared: list[tuple[int, int]] = []

    def counting(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(live, "hmac", type("counted", (), {"compare_digest": staticmethod(counting)}))
    wrong = [secret[:kept] + "x" * (len(secret) - kept - 1) + "!" for secret in secrets for kept in range(len(secret))]
    assert [one for one in [*wrong, revoked, "", "mse_", "x" * 8000, "\ud800"] if tokens.find(one)] == []
    assert set(compared) == {(32, 32)}
    assert len(compared) == len(wrong) + 5
    assert all(tokens.find(secret) for secret in secrets)


def test_two_daemons_look_secrets_up_in_different_orders(store: TokenStore, tokens: Tokens):
    store.create("ci")
    other = Tokens(store.path.parent, Metrics(version="0"))
    tokens.check()
    other.check()
    assert set(tokens._known).isdisjoint(other._known)
    other.close()


async def test_what_runs_under_a_token_ends_when_it_is_revoked_and_nothing_else(
    store: TokenStore, tokens: Tokens, clock: Clock
):
    secrets = {name: store.create(name, now=clock.now)[0] for name in ("gone", "stays")}
    held = {name: tokens.find(secret) for name, secret in secrets.items()}
    never = asyncio.Event()
    calls = {
        name: asyncio.create_task(tokens.while_valid(token, never.wait())) for name, token in held.items() if token
    }
    await asyncio.sleep(0)
    tokens.end_invalid()
    store.revoke("gone", now=clock.now)
    tokens.end_invalid()
    with pytest.raises(Unauthenticated, match="revoked"):
        await calls["gone"]
    tokens.end_invalid()
    never.set()
    assert await calls["stays"]
    assert tokens._running == {}


async def test_what_runs_under_a_token_ends_when_it_expires(store: TokenStore, tokens: Tokens, clock: Clock):
    secret, _ = store.create("ci", lifetime_s=60, now=clock.now)
    token = tokens.find(secret)
    assert token
    call = asyncio.create_task(tokens.while_valid(token, asyncio.Event().wait()))
    await asyncio.sleep(0)
    clock.now += 61
    tokens.end_invalid()
    with pytest.raises(Unauthenticated):
        await call


async def test_a_timeout_of_the_work_itself_stays_one(store: TokenStore, tokens: Tokens):
    token = tokens.find(store.create("ci")[0])
    assert token

    async def slow() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await tokens.while_valid(token, slow())


def test_the_number_of_valid_tokens_is_known(store: TokenStore, tokens: Tokens, clock: Clock):
    for name in ("a", "b", "c"):
        store.create(name, lifetime_s=60 if name == "a" else None, now=clock.now)
    tokens.check()
    assert tokens.count == 3
    clock.now += 60
    store.revoke("b", now=clock.now)
    tokens.check()
    assert tokens.count == 1


def copied(store: TokenStore, name: str) -> Path:
    """A backup: a plain copy of the file while a daemon uses it."""
    backup = store.path.with_name(name)
    backup.write_bytes(store.path.read_bytes())
    return backup


def test_a_backup_that_is_copied_over_the_file_counts_with_the_next_call(store: TokenStore, tokens: Tokens):
    old, _ = store.create("old")
    backup = copied(store, "backup").read_bytes()
    inode = store.path.stat().st_ino
    new, made = store.create("new")
    assert tokens.find(new)
    store.revoke("old")
    assert tokens.find(old) is None
    after = copied(store, "after").read_bytes()
    assert len(after) == len(backup)
    store.path.write_bytes(backup)
    assert tokens.find(old)
    assert tokens.find(new) is None
    store.path.write_bytes(after)
    assert (tokens.find(old), tokens.find(new)) == (None, made)
    assert store.path.stat().st_ino == inode


def test_a_backup_with_the_times_of_the_file_counts_too(store: TokenStore, tokens: Tokens):
    """As `cp --preserve` and tar leave it; also long after the last change."""
    old, _ = store.create("old")
    backup = store.path.read_bytes()
    new, _ = store.create("new")
    while store.changed():  # until the file is older than what a clock can tell apart
        store.tokens()
    tokens.check()
    times = store.path.stat()
    store.path.write_bytes(backup)
    os.utime(store.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert tokens.find(new) is None
    assert tokens.find(old)


def test_tokens_that_nobody_changed_are_not_read_again(
    store: TokenStore, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
):
    secret, _ = store.create("ci")
    while store.changed():
        store.tokens()
    assert tokens.find(secret)
    monkeypatch.setattr(sqlite3, "connect", lambda *_, **__: pytest.fail("read again"))
    assert tokens.find(secret)
    assert tokens.find("mse_other") is None


@pytest.mark.parametrize("kept", [0, 100, 4096, 5000])
def test_half_a_copy_lets_nobody_in_and_the_whole_one_does(
    store: TokenStore, tokens: Tokens, kept: int, caplog: pytest.LogCaptureFixture
):
    secret, _ = store.create("ci")
    whole = store.path.read_bytes()
    assert tokens.find(secret)
    with caplog.at_level("INFO"):
        store.path.write_bytes(whole[:kept])
        for _ in range(3):
            with pytest.raises(Unavailable):
                tokens.find(secret)
        assert store.path.read_bytes() == whole[:kept]
        with pytest.raises(TokensUnusable, match=r"put a backup in its place, or move it away and make new tokens"):
            store.create("other")
        store.path.write_bytes(whole)
        assert tokens.find(secret)
    assert [record.message for record in caplog.records] == [
        "tokens cannot be read; nobody who needs one gets in",
        "tokens can be read again",
    ]


def test_a_backup_needs_only_the_file_also_while_a_daemon_uses_it(
    store: TokenStore, tokens: Tokens, clock: Clock, tmp_path: Path
):
    secrets = [store.create(f"t{number}", now=clock.now)[0] for number in range(5)]
    assert all(tokens.find(secret) for secret in secrets)
    assert [path.name for path in store.path.parent.iterdir()] == [DATABASE_NAME]
    (tmp_path / "other").mkdir(mode=0o700)
    other = tmp_path / "other" / DATABASE_NAME
    other.write_bytes(store.path.read_bytes())
    other.chmod(0o600)
    assert len(TokenStore(other.parent).tokens()) == 5


def test_a_directory_in_the_place_of_the_file_says_so(store: TokenStore, tokens: Tokens):
    store.path.mkdir(parents=True)
    with pytest.raises(Unavailable):
        tokens.find("mse_x")
    with pytest.raises(TokensUnusable, match="no regular file; move it away"):
        store.tokens()
