"""How sandboxes come to be: each request once, however often it is sent, and for as long as somebody waits for it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from enclaved.core import identity
from enclaved.core.background import Background
from enclaved.core.boot import Boot
from enclaved.core.changes import Changes
from enclaved.core.endings import Endings
from enclaved.core.policy import Admission, Policy, check_id, check_labels, check_request_id
from enclaved.core.quotas import Quotas
from enclaved.core.record import SandboxRecord
from enclaved.core.startup_command import StartupCommands
from enclaved.core.state import Chronicle
from enclaved.core.state.rows import encode
from enclaved.errors import (
    EngineUnavailable,
    FieldViolation,
    InvalidRequest,
    LimitReached,
    PolicyDenied,
    RequestEnded,
    SandboxExists,
    ShuttingDown,
)
from enclaved.metrics import Metrics
from enclaved.model import DEFAULT_TENANT, Cause, Sandbox, SandboxRequest, SandboxState, StateChange

log = logging.getLogger(__name__)

GONE_WITHIN_S: Final = 10.0
"""How long a creation waits for the deletion of another sandbox that has its id."""
OWN_GONE_WITHIN_S: Final = 60.0
"""The same, for what a daemon that was killed has left of an earlier attempt at the same request."""
DELETIONS_FREE: Final = 64
"""So many sandboxes may be on their way out without counting as there."""


@dataclass(slots=True, eq=False)
class Birth:
    """A sandbox that is being made, and how many callers wait for it."""

    task: asyncio.Task[Sandbox]
    waiting: int = 0


REQUEST_BYTES_MAX: Final = 128 * 1024


@dataclass(frozen=True, slots=True)
class Wish:
    """A sandbox that somebody wants."""

    request: SandboxRequest
    sandbox_id: str
    labels: Mapping[str, str]
    pool_id: str
    request_id: str

    @property
    def digest(self) -> str:
        """Tells a request from another one."""
        text = encode({"id": self.sandbox_id, "labels": self.labels, "pool": self.pool_id, "request": self.request})
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def check_size(self) -> None:
        """Raises `InvalidRequest` for one that is too large to be shown in listings and to everybody who watches."""
        size_bytes = len(encode(self.request).encode("utf-8", "surrogatepass"))
        if size_bytes > REQUEST_BYTES_MAX:
            text = f"has {size_bytes} bytes, and at most {REQUEST_BYTES_MAX} are possible; put large values into files"
            raise InvalidRequest.of("spec", text)


class Creation:
    """Makes sandboxes. ``records`` are those there are, and ``up`` makes the container of one and starts it."""

    def __init__(
        self,
        records: dict[str, SandboxRecord],
        *,
        boot: Boot,
        policy: Policy,
        background: Background,
        metrics: Metrics,
        changes: Changes,
        chronicle: Chronicle,
        endings: Endings,
        commands: StartupCommands,
        up: Callable[[SandboxRecord], Awaitable[None]],
        began: Callable[[SandboxRecord], None],
        closing: Callable[[], bool],
    ) -> None:
        self._records, self._up, self._began, self._closing = records, up, began, closing
        self._boot, self._policy, self._background, self._metrics = boot, policy, background, metrics
        self._changes, self._chronicle, self._endings = changes, chronicle, endings
        self._commands = commands
        self._quotas = Quotas(policy, records.values, metrics)
        self._by_request: dict[tuple[str, str], SandboxRecord] = {}
        self._births: dict[SandboxRecord, Birth] = {}
        self._count = 0

    def know(self, record: SandboxRecord) -> None:
        """Takes up a sandbox of an earlier daemon."""
        self._count = max(self._count, record.number)
        if record.request_id and record.was_made:
            self._by_request[record.tenant, record.request_id] = record

    def claimed(self, record: SandboxRecord) -> None:
        """A member of a pool was handed over, by the request that it names."""
        if record.request_id:
            self._by_request[record.tenant, record.request_id] = record

    def forget(self, record: SandboxRecord) -> None:
        """Nothing is left of a sandbox."""
        key = (record.tenant, record.request_id)
        if self._by_request.get(key) is record:
            del self._by_request[key]

    async def create(self, wish: Wish) -> Sandbox:
        """Makes a sandbox, or finds the one that the same request made."""
        if wish.request_id:
            check_request_id(wish.request_id)
            found = await self.asked_before(wish.request_id, wish.digest)
            if found is not None:
                return found
        if self._closing():
            raise ShuttingDown
        if wish.sandbox_id:
            check_id(wish.sandbox_id)
        check_labels(wish.labels)
        wish.check_size()
        admission = self._admit(wish.request)
        if wish.pool_id and admission.spec.command:
            text = "a pool ends everything that runs in its sandboxes after each call; leave the command out"
            raise InvalidRequest.of("spec.command", text)
        if wish.sandbox_id in self._records:
            await self._await_gone(self._records[wish.sandbox_id], wish)
            return await self.create(wish)  # whatever has changed meanwhile
        self.check_room(1)
        if not wish.pool_id:  # a pool was counted as a whole (`take_pool`), and its members come back by themselves
            self._quotas.take_create()
        record = self._enter(wish, admission)
        birth = self._births[record] = Birth(self._background.begin(self._make(record), f"create {record.id}"))
        return await self._wait(birth)

    def _admit(self, request: SandboxRequest) -> Admission:
        who = identity.current()
        try:
            return self._policy.admit(request, who)
        except PolicyDenied as error:
            self._metrics.access.policy_refused(error.rule)
            refused = {"identity": who.name, "role": who.role, "rule": error.rule, "field": error.field}
            log.warning("request refused by policy", extra=refused)
            raise

    async def asked_before(self, request_id: str, digest: str) -> Sandbox | None:
        """The sandbox that a request made, or makes at this moment; ``None`` if there was no such request.

        Raises `InvalidRequest` for another request under the same id, `RequestEnded` if the sandbox is gone.
        """
        while (record := self._by_request.get((DEFAULT_TENANT, request_id))) is not None:
            self._check_same(digest, record.request_digest)
            birth = self._births.get(record)
            if birth is None and not record.was_made:
                return None  # it could not be made, and what there is of it goes
            if birth is None and record.state is SandboxState.DELETING:
                raise RequestEnded(request_id, record.id)
            if birth is None:
                return record.snapshot()
            if birth.waiting:
                return await self._wait(birth)
            await asyncio.wait([birth.task])  # those who wanted it have left: it is being undone
        ended = self._chronicle.request(DEFAULT_TENANT, request_id)
        if ended is not None:
            self._check_same(digest, ended.request_digest)
            raise RequestEnded(request_id, ended.sandbox_id)
        return None

    @staticmethod
    def _check_same(digest: str, before: str) -> None:
        if digest != before:
            text = "was sent with another request before; send the same request again, or choose another id"
            raise InvalidRequest(FieldViolation("request_id", text, "REQUEST_ID_REUSED"))

    async def _await_gone(self, record: SandboxRecord, wish: Wish) -> None:
        """Waits for the end of a deletion. Raises `SandboxExists`, `EngineUnavailable`."""
        if record.state is not SandboxState.DELETING:
            raise SandboxExists(record.id)
        is_own = bool(wish.request_id) and record.request_id == wish.request_id
        try:
            async with asyncio.timeout(OWN_GONE_WITHIN_S if is_own else GONE_WITHIN_S):
                await record.gone.wait()
        except TimeoutError:
            if is_own:
                text = f"what an earlier attempt at sandbox {record.id!r} has left cannot be removed yet; try again"
                raise EngineUnavailable("engine", text) from None
            raise SandboxExists(record.id, "it is still being deleted") from None

    def check_claim(self, record: SandboxRecord) -> None:
        """Raises `LimitReached` if the caller has as many sandboxes as may be, or made as many as may be just now."""
        if record.owner != identity.current().name:
            self._quotas.check_sandboxes(1)
        self._quotas.take_create()

    def check_room(self, count: int, field: str = "") -> None:
        """Looks whether there can be so many more sandboxes. Raises as `Sandboxes.check_room`."""
        most = self._policy.limits.sandboxes_max
        if field and count > most:
            text = f"{field} is {count}, and this daemon has at most {most} sandboxes; ask for less"
            raise PolicyDenied("resources", field, text, limit=str(most))
        leaving = sum(record.state is SandboxState.DELETING for record in self._records.values())
        now = len(self._records) - min(leaving, DELETIONS_FREE)
        if now + count > most:
            has = f"{most} sandboxes already" if now >= most else f"{now} sandboxes, and {count} more would be too many"
            text = f"the daemon has {has}, its limit (sandboxes_max {most}); delete some, or try again later"
            raise LimitReached("daemon", "sandboxes_max", text)
        self._quotas.check_sandboxes(count)

    def take_pool(self, count: int) -> None:
        """Counts the members that a pool is to have, or to have more. Raises `LimitReached`."""
        self._quotas.take_create(max(0, count))

    def _enter(self, wish: Wish, admission: Admission) -> SandboxRecord:
        self._count += 1
        record = SandboxRecord(
            id=wish.sandbox_id or self._new_id(),
            number=self._count,
            spec=admission.spec,
            adjustments=admission.adjustments,
            labels=dict(wish.labels),
            uid=self._boot.take_uid(),
            directory=self._boot.new_directory(),
            metrics=self._metrics,
            pool_id=wish.pool_id,
            owner=identity.current().name,
            request_id=wish.request_id,
            request_digest=wish.digest if wish.request_id else "",
            born=asyncio.get_running_loop().time(),
        )
        record.history.append(StateChange(record.created_at, record.state, "", self._cause(record)))
        self._records[record.id] = record
        if wish.request_id:
            self._by_request[record.tenant, wish.request_id] = record
        return record

    def _new_id(self) -> str:
        while (sandbox_id := secrets.token_hex(6)) in self._records:
            pass
        return sandbox_id

    @staticmethod
    def _cause(record: SandboxRecord) -> Cause:
        return Cause.DAEMON if record.pool_id else Cause.REQUEST

    async def _make(self, record: SandboxRecord) -> Sandbox:
        try:
            async with record.lock:
                command = self._commands.admit(record)
                self._changes.save(record, self._cause(record))
                await self._up(record)
                record.touch()
                self._commands.expect(record, command)
                self._changes.move(record, SandboxState.RUNNING, self._cause(record))
                await self._commands.begin(record, command)
                if command is not None:
                    self._changes.settled(record)
        except BaseException as error:
            # What was made could not be removed yet: the id stays taken until it is.
            left = record.container_id is not None or record.state is SandboxState.DELETING
            if left:
                self._endings.delete(record, f"it could not be created: {error}", Cause.DAEMON)
            else:
                self._endings.drop(record)
            raise
        finally:
            del self._births[record]
        self._began(record)
        self._metrics.sandboxes.created()
        log.info("sandbox created", extra={"sandbox_id": record.id, "image": record.spec.image})
        return record.snapshot()

    async def _wait(self, birth: Birth) -> Sandbox:
        """Waits until a sandbox is there; whoever leaves last lets it be undone, and waits for that."""
        birth.waiting += 1
        try:
            return await asyncio.shield(birth.task)
        except asyncio.CancelledError:
            if birth.task.cancelled():  # the daemon ends
                raise ShuttingDown from None
            if birth.waiting == 1 and birth.task.done() and birth.task.exception() is None:
                self._leave(birth.task.result().id)
            raise
        finally:
            birth.waiting -= 1
            if not birth.waiting and not birth.task.done():
                birth.task.cancel()
                await asyncio.wait([birth.task])

    def _leave(self, sandbox_id: str) -> None:
        """Deletes a sandbox whose caller left as it was made, unless it can be asked for again by its request id."""
        record = self._records.get(sandbox_id)
        if record is not None and not record.request_id:
            self._endings.delete(record, "its caller left before it was told of it", Cause.REQUEST)
