"""The file of tokens: SQLite, for the daemon's user alone, changed by a command while the daemon reads it."""

from __future__ import annotations

import enum
import hashlib
import os
import re
import secrets
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from enclaved.errors import InvalidRequest, LimitReached, NotFound
from enclaved.model import DEFAULT_ROLE, DEFAULT_TENANT

DATABASE_NAME: Final = "tokens.sqlite3"
PREFIX: Final = "mse_"
"""What every secret starts with, so that people and scanners of leaked keys recognise one."""
SECRET_BYTES: Final = 32
TOKENS_MAX: Final = 10_000
"""Tokens that may be valid at once."""
KEPT_S: Final = 90 * 86400.0
"""How long a token that is revoked or expired stays in the list."""

_BUSY_S: Final = 1.0
_TICK_NS: Final = 20_000_000
"""No kernel's clock for files is coarser."""
_MEND: Final = "put a backup in its place, or move it away and make new tokens with 'enclaved token create NAME'"
_APPLICATION_ID: Final = 0x6D736574  # "mset"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS tokens (
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    tenant TEXT NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL,
    last_used_at REAL,
    revoked_at REAL
) WITHOUT ROWID
"""
_ALL: Final = (
    "SELECT digest, id, name, role, tenant, created_at, expires_at, last_used_at, revoked_at FROM tokens "
    "ORDER BY created_at DESC, id"
)


class TokensUnusable(Exception):
    """The file of tokens cannot be used. The text says why and what to do, in one line."""


class TokenState(enum.StrEnum):
    """Whether a token opens anything."""

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token; its secret is not. Times are seconds since the epoch, by the wall clock."""

    id: str
    name: str
    """Who calls with it. Several tokens may have one name, so that one can replace another without a gap."""
    role: str
    tenant: str
    created_at: float
    expires_at: float | None = None
    last_used_at: float | None = None
    """To the minute."""
    revoked_at: float | None = None

    def state(self, now: float) -> TokenState:
        """Whether it is valid at a time."""
        if self.revoked_at is not None:
            return TokenState.REVOKED
        if self.expires_at is not None and self.expires_at <= now:
            return TokenState.EXPIRED
        return TokenState.VALID


def digest_of(secret: str) -> bytes:
    """Returns what is kept of a secret. A fast digest is enough: nobody can try 32 random bytes."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class _Stamp(NamedTuple):
    """What tells one content of the file from another, also where somebody gives it the times of an older one."""

    file: tuple[int, ...] | None
    log: tuple[int, ...] | None
    changed_ns: int
    """When either changed last, by the file system's clock."""


class TokenStore:
    """The file in a state directory. Every method raises `TokensUnusable` where the file cannot be used.

    It is open only while it is read or written. So whatever was put into its place, or copied over it, is what is read
    next, and what SQLite writes beside it (the log) is in the file as soon as nobody uses it: a copy of it is whole.
    """

    def __init__(self, state_dir: Path) -> None:
        """Opens nothing yet: without a file there are no tokens."""
        self.path = state_dir / DATABASE_NAME
        self._log = self.path.with_name(f"{DATABASE_NAME}-wal")
        self._seen: _Stamp | None = None

    def create(
        self,
        name: str,
        *,
        role: str = DEFAULT_ROLE,
        tenant: str = DEFAULT_TENANT,
        lifetime_s: float | None = None,
        now: float | None = None,
    ) -> tuple[str, Token]:
        """Makes a token, and the file if need be; returns its secret, which is not kept, and what is.

        Without ``lifetime_s`` it does not expire. Raises `InvalidRequest`, and `LimitReached` at `TOKENS_MAX`.
        """
        for field, text in (("name", name), ("role", role), ("tenant", tenant)):
            if not _NAME.fullmatch(text):
                allowed = "1 to 64 of A-Z a-z 0-9 . _ @ -, the first a letter or digit"
                raise InvalidRequest.of(field, f"must have {allowed}, is {text[:100]!r}")
        if lifetime_s is not None and not 0 < lifetime_s < 1e10:
            raise InvalidRequest.of("expires", "must be a time after now, within 300 years")
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        created = time.time() if now is None else now
        token = Token(
            secrets.token_hex(6), name, role, tenant, created, None if lifetime_s is None else created + lifetime_s
        )
        with self._transaction(makes=True) as connection:
            connection.execute("DELETE FROM tokens WHERE coalesce(revoked_at, expires_at) < ?", (created - KEPT_S,))
            count = "SELECT count(*) FROM tokens WHERE revoked_at IS NULL AND coalesce(expires_at, 1e99) > ?"
            if connection.execute(count, (created,)).fetchone()[0] >= TOKENS_MAX:
                raise LimitReached("tokens", str(TOKENS_MAX), f"there are {TOKENS_MAX} tokens; revoke some first")
            connection.execute(
                "INSERT INTO tokens (id, digest, name, role, tenant, created_at, expires_at) VALUES (?,?,?,?,?,?,?)",
                (token.id, digest_of(secret), name, role, tenant, created, token.expires_at),
            )
        return secret, token

    def tokens(self) -> list[Token]:
        """Lists all tokens, the newest first; those that opened nothing for 90 days may be missing."""
        return [token for _, token in self.digests()]

    def revoke(self, which: str, *, now: float | None = None) -> list[Token]:
        """Revokes the token of an id, or all of a name; returns them. Raises `NotFound` if there is none to revoke."""
        when = time.time() if now is None else now
        found = [token for token in self.tokens() if which in (token.id, token.name) and token.revoked_at is None]
        if not found:
            raise NotFound(which, f"no token {which[:100]!r} is there to be revoked; 'enclaved token list' shows them")
        update = "UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL"
        with self._transaction() as connection:
            connection.executemany(update, [(when, token.id) for token in found])
        return [replace(token, revoked_at=when) for token in found]

    def changed(self) -> bool:
        """Whether the tokens may differ from what `digests` read last. Cheap: it looks at the file and its log."""
        stamp = self._stamp()
        return self._seen is None or stamp != self._seen

    def digests(self) -> list[tuple[bytes, Token]]:
        """Lists all tokens with their digests."""
        self._seen = None
        stamp = self._stamp()
        rows: list[Any] = []
        if stamp.file is not None:
            try:
                with closing(self._open()) as connection:
                    rows = connection.execute(_ALL).fetchall()
            except sqlite3.Error as error:
                raise _refusal(self.path, error) from error
        if not all(_makes_sense(row) for row in rows):
            raise TokensUnusable(f"cannot use the tokens in {self.path}: it is damaged; {_MEND}")
        # What changes within one tick of the file system's clock looks the same before and after.
        if time.time_ns() - stamp.changed_ns > _TICK_NS:
            self._seen = stamp
        return [(row[0], Token(*row[1:])) for row in rows]

    def note_used(self, uses: Iterable[tuple[str, float]]) -> None:
        """Writes down when tokens were used last, by their ids."""
        with self._transaction() as connection:
            connection.executemany("UPDATE tokens SET last_used_at = ? WHERE id = ?", [(at, who) for who, at in uses])

    def close(self) -> None:
        """Forgets what was read. A later call reads again."""
        self._seen = None

    @contextmanager
    def _transaction(self, *, makes: bool = False) -> Iterator[sqlite3.Connection]:
        if self._look() is None:
            if not makes:
                raise TokensUnusable(f"cannot use the tokens in {self.path}: the file is gone")
            self._make()
        try:
            with closing(self._open()) as connection:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                with suppress(sqlite3.Error):  # it is written; what the log has gets into the file later
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise _refusal(self.path, error) from error

    def _open(self) -> sqlite3.Connection:
        """Opens the file, which is there."""
        uri = f"file:{quote(str(self.path))}?mode=rw"  # else SQLite would make one that went away just now
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None)
        try:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if application != _APPLICATION_ID:
                why = "a file of another program" if application or tables else "empty"
                raise TokensUnusable(f"cannot use the tokens in {self.path}: it is {why}; {_MEND}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _stamp(self) -> _Stamp:
        """What tells one content of the file from another."""
        found = self._look()
        if found is None:
            return _Stamp(None, None, 0)
        try:
            log = self._log.lstat()
        except OSError:  # there is none, or it cannot be used: that is told when it is read
            log = None
        if log is not None and not log.st_size:  # reading makes it, without content
            log = None
        changed_ns = max(found.st_ctime_ns, 0 if log is None else log.st_ctime_ns)
        return _Stamp(_identity(found), None if log is None else _identity(log), changed_ns)

    def _look(self) -> os.stat_result | None:
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _closed(self.path, error) from error
        if not stat.S_ISREG(found.st_mode):
            raise TokensUnusable(
                f"cannot use the tokens in {self.path}: it is no regular file; move it away, and put the file "
                "itself there"
            )
        if found.st_mode & 0o077:
            raise TokensUnusable(
                f"cannot use the tokens in {self.path}: others than its owner may open it; 'chmod 600 {self.path}', "
                "and make new tokens if others may have written to it"
            )
        return found

    def _make(self) -> None:
        """Makes the file, for the owner of the state directory even if it is root who makes it.

        It appears under its name when it is whole, so that nobody who comes at the same time finds half of it.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".tokens-", dir=self.path.parent) as directory:
                new = Path(directory) / DATABASE_NAME
                fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    if os.geteuid() == 0:
                        owner = self.path.parent.stat()
                        os.fchown(fd, owner.st_uid, owner.st_gid)
                finally:
                    os.close(fd)
                with closing(sqlite3.connect(new, isolation_level=None)) as connection:
                    _prepare(connection)
                with suppress(FileExistsError):  # somebody else was faster
                    os.link(new, self.path)
        except OSError as error:
            raise _closed(self.path, error) from error


def _prepare(connection: sqlite3.Connection) -> None:
    # Readers never wait for a writer, and a writer never for readers.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(_SCHEMA)
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _makes_sense(row: Sequence[object]) -> bool:
    """Whether a row has what a token has. SQLite keeps anything in any column."""
    digest, texts, (created, *others) = row[0], row[1:5], row[5:]
    times = [created, *(other for other in others if other is not None)]
    is_named = isinstance(digest, bytes) and all(isinstance(text, str) and text.isascii() for text in texts)
    return is_named and all(isinstance(at, float) for at in times)


def _closed(path: Path, error: OSError) -> TokensUnusable:
    hint = "run this as root or as the daemon's user, and name its state directory with --state-dir"
    return TokensUnusable(f"cannot use the tokens in {path}: {error.strerror}; {hint}")


def _refusal(path: Path, error: sqlite3.Error) -> TokensUnusable:
    # What is not operational is wrong with the file itself.
    hint = (
        f"make room there if the disk is full; else {_MEND}" if isinstance(error, sqlite3.OperationalError) else _MEND
    )
    return TokensUnusable(f"cannot use the tokens in {path}: {error}; {hint}")
