"""What a running daemon knows of its tokens: finds one by its secret, and ends what runs under one that is no more."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from enclaved.core.tokens.store import Token, TokenState, TokenStore, TokensUnusable, digest_of
from enclaved.errors import TokensUnavailable, Unauthenticated
from enclaved.metrics import Metrics

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
"""How soon a call ends whose token was revoked or expired while it ran."""
USES_EVERY_S: Final = 60.0
"""How often it is written down when tokens were used last."""
INVALID: Final = (
    "a valid token is needed here: give one as MS_ENCLAVE_TOKEN or token=..., or send it as 'authorization: Bearer "
    "TOKEN'. There was none, or it is unknown, expired or revoked; 'enclaved token create NAME' makes one"
)
"""One text for every secret that opens nothing, so that it tells nothing about secrets."""

T = TypeVar("T")
_NOBODY: Final = (bytes(32), None)


class Tokens:
    """The tokens of one state directory. Belongs to the event loop's thread."""

    def __init__(self, state_dir: Path, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        """``clock``: seconds since the epoch; tokens expire by it."""
        self._store = TokenStore(state_dir)
        self._metrics = metrics
        self._clock = clock
        self._blind = secrets.token_bytes(32)
        self._known: dict[bytes, tuple[bytes, Token | None]] = {}
        """By blinded digest: how long a look-up takes says nothing about the digests that are stored."""
        self._by_id: dict[str, Token] = {}
        self._uses: dict[str, float] = {}
        self._running: dict[str, set[asyncio.Timeout]] = {}
        self._waiting: dict[str, set[asyncio.Task[Any]]] = {}
        """Tasks whose answer waits for its client to take it."""
        self._is_well = True

    def find(self, secret: str) -> Token | None:
        """Finds the valid token with this secret. Raises `TokensUnavailable` if the tokens cannot be read."""
        digest = digest_of(secret)
        self._refresh()
        stored, token = self._known.get(self._blinded(digest), _NOBODY)
        fits = hmac.compare_digest(digest, stored)
        now = self._clock()
        if not fits or token is None or token.state(now) is not TokenState.VALID:
            return None
        self._uses[token.id] = now - now % 60
        return token

    @property
    def count(self) -> int:
        """How many are valid, as far as was read last."""
        now = self._clock()
        return sum(token.state(now) is TokenState.VALID for token in self._by_id.values())

    async def while_valid(self, token: Token, work: Awaitable[T]) -> T:
        """Awaits work for as long as a token is valid. Raises `Unauthenticated` soon after it is no more."""
        scope = asyncio.timeout(None)
        running = self._running.setdefault(token.id, set())
        running.add(scope)
        try:
            async with scope:
                return await work
        except TimeoutError:
            if scope.expired():
                raise Unauthenticated(INVALID) from None
            raise
        finally:
            running.discard(scope)
            if not running:
                self._running.pop(token.id, None)

    def until_taken(self, token: Token) -> None:
        """Ends this task soon after a token is no more valid, if its answer still waits to be taken then."""
        task = asyncio.current_task()
        if task is None:
            return
        waiting = self._waiting.setdefault(token.id, set())
        waiting.add(task)

        def taken(done: asyncio.Task[Any]) -> None:
            waiting.discard(done)
            if not waiting and self._waiting.get(token.id) is waiting:
                del self._waiting[token.id]

        task.add_done_callback(taken)

    def open(self) -> None:
        """Reads the tokens for the first time. Raises `TokensUnusable` if they cannot be read."""
        self._read()

    def check(self) -> None:
        """Reads the tokens anew if somebody changed them. Raises `TokensUnavailable` if they cannot be read."""
        self._refresh()

    async def watch(self) -> None:
        """Ends what runs under tokens that are no more, and notes which are used. Never returns."""
        loop = asyncio.get_running_loop()
        written = loop.time()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.end_invalid()
            if loop.time() - written >= USES_EVERY_S:
                written = loop.time()
                self._note_uses()

    def end_invalid(self) -> None:
        """Ends the calls whose tokens are no more valid. Where tokens cannot be read, calls that run go on."""
        try:
            self._refresh()
        except TokensUnavailable:
            return
        self._metrics.access.tokens_valid(self.count)
        now, loop_now = self._clock(), asyncio.get_running_loop().time()
        for token_id in {*self._running, *self._waiting}:
            token = self._by_id.get(token_id)
            if token is not None and token.state(now) is TokenState.VALID:
                continue
            running, waiting = self._running.get(token_id, ()), self._waiting.get(token_id, ())
            calls = len(running) + len(waiting)
            _log.info("calls ended: their token is no more valid", extra={"token": token_id, "calls": calls})
            for scope in running:
                if not scope.expired():
                    scope.reschedule(loop_now)
            for task in waiting:
                task.cancel()

    def close(self) -> None:
        """Writes down which tokens were used, and closes the file."""
        self._note_uses()
        self._store.close()

    def _refresh(self) -> None:
        try:
            self._read()
        except TokensUnusable as error:
            if self._is_well:
                _log.error("tokens cannot be read; nobody who needs one gets in", extra={"why": str(error)})
            self._is_well = False
            raise TokensUnavailable from None
        if not self._is_well:
            _log.info("tokens can be read again", extra={"tokens": self.count})
        self._is_well = True

    def _read(self) -> None:
        if self._store.changed() or not self._is_well:
            found = self._store.digests()
            self._known = {self._blinded(digest): (digest, token) for digest, token in found}
            self._by_id = {token.id: token for _, token in found}

    def _blinded(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._blind, digest_size=16).digest()

    def _note_uses(self) -> None:
        uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            self._store.note_used(uses.items())
        except TokensUnusable as error:
            _log.warning("the last use of tokens is not written down", extra={"why": str(error)})
