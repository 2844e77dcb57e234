"""The daemon's side of the connection to one guest: it listens, the guest connects and reconnects; or it attaches.

Everything that comes from a guest is hostile: frames are length-limited by the codec, every field is checked here or
in ``handle.py``, and nonsense ends the connection. Frames: docs/guest-protocol.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import signal
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from enclaved.agent.attached import Attaching
from enclaved.agent.fields import boolean, integer, string
from enclaved.agent.guest.frames import FrameError, encode_frame
from enclaved.agent.guest.limits import PROTOCOL_VERSION
from enclaved.agent.handle import Handle, RunOptions
from enclaved.agent.jobs import WireJob
from enclaved.agent.peer import Peer, SocketPeer, bound_socket
from enclaved.agent.reader import OutputReader
from enclaved.agent.sender import Hold
from enclaved.agent.versions import OLDEST_GUEST, needed_for_frame
from enclaved.errors import EnclaveError, GuestUnavailable, SandboxLost, WrongState
from enclaved.runtime.base import ByteChannel

log = logging.getLogger(__name__)

SOCKET_NAME = "agent.sock"
PARK_DEADLINE_S = 10.0
STRANGERS_GRACE_S = 2.0
"""How long what nobody knows of may remove what it has half made."""
HELD_MOST = 4096
"""Executions that a guest may say it holds; a real one has at most 1024."""
SMALL_TALK_MOST_BYTES = 1024 * 1024
"""What may wait for a guest that does not read, beside jobs and input, which have bounds of their own."""
PATIENCE_S = 0.02
_BOUNDED = frozenset({"run", "job", "stdin", "credit", "park"})
"""Frames of which there cannot be many: one for each execution, within a window, or one at a time."""
_PATIENT = frozenset({"may_go"})
"""Frames for which alone nobody need be woken: they go with the next one, or after `PATIENCE_S`."""
_ANSWERS = frozenset({"pong", "parked", "paused", "context", "contexts", "context_refused"})


OpenChannel = Callable[[], AbstractAsyncContextManager[ByteChannel]]
FindUser = Callable[[], Awaitable[int | None]]


class GuestLink:
    """Listens for one sandbox's guest or attaches to it, and routes frames between it and its executions."""

    def __init__(
        self,
        sandbox_id: str,
        directory: Path,
        *,
        group_id: int,
        guest_uids: Collection[int],
        open_channel: OpenChannel | None = None,
        find_mapped_root: FindUser | None = None,
    ) -> None:
        """``open_channel`` attaches to the guest, which then needs no socket.

        ``find_mapped_root`` says as whom the guest appears on this host, where that is neither root nor this user.
        """
        self.sandbox_id = sandbox_id
        self.directory = directory
        self.handles: dict[str, Handle] = {}
        self.python_version = ""
        self.version = PROTOCOL_VERSION
        """The version in which guest and daemon speak."""
        self.stranger = ""
        """Why a guest that came cannot be spoken to; empty if none was so new."""
        self.on_ready: Callable[[], None] | None = None
        """Called each time when the guest is there."""
        self.has_met = False
        """Whether the guest has met this daemon, or an earlier one."""
        self.is_another = False
        """Whether a guest came that has met no daemon, where one had: its container was started anew."""
        self._group_id = group_id
        self._find_mapped_root = find_mapped_root
        self._mapped_root: int | None = None
        self._guest_uids = guest_uids
        self._server: asyncio.Server | None = None
        self._open_channel = open_channel
        self._attaching: Attaching | None = None
        self._peer: Peer | None = None
        self._ready = asyncio.Event()
        self._small_talk_bytes = 0
        self._later = b""
        self._timer: asyncio.TimerHandle | None = None
        self._away = asyncio.Event()
        self._away.set()
        self._held: dict[str, Hold] = {}
        self._numbers = 0
        self._answers: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._lost: EnclaveError | None = None

    @property
    def attaches(self) -> bool:
        """Whether it attaches to the guest, once there is a container, instead of listening for it."""
        return self._open_channel is not None

    async def listen(self) -> None:
        """Makes the directory and listens in it. Raises `NoSpace` if the host does not let it.

        One that `attaches` begins to do so, and does it again whenever the channel breaks.
        """
        if self._open_channel is not None:
            self._attaching = self._attaching or Attaching(self, self._open_channel)
            return
        if self._find_mapped_root is not None:
            self._mapped_root = await self._find_mapped_root()
        sock = bound_socket(self.directory / SOCKET_NAME, self._group_id, self._mapped_root)
        loop = asyncio.get_running_loop()
        # In two steps: whoever is cancelled in between has a server that can be closed.
        self._server = await loop.create_unix_server(
            lambda: SocketPeer(self), sock=sock, backlog=4, start_serving=False
        )
        await self._server.start_serving()

    async def renewed(self, deadline_s: float) -> bool:
        """Whether a guest that does not answer does so after being attached to again; false where it must connect."""
        if self._attaching is None or self._lost is not None:
            return False
        if self._peer is not None:
            self._peer.abort()
        try:
            async with asyncio.timeout(deadline_s):
                await self.wait_connected()
        except TimeoutError:
            return False
        return True

    @property
    def connected(self) -> bool:
        """Whether the guest is there and has said what it holds."""
        return self._ready.is_set()

    @property
    def congested(self) -> bool:
        """Whether so much waits for the guest that nothing more may be said but what replaces other news."""
        return self._small_talk_bytes >= SMALL_TALK_MOST_BYTES

    async def wait_connected(self) -> None:
        """Waits until the guest is there. The caller sets the deadline."""
        await self._ready.wait()

    async def wait_away(self) -> None:
        """Waits until the guest is not there."""
        await self._away.wait()

    @property
    def outdated(self) -> bool:
        """Whether the guest is too old to be given anything new to do."""
        return self.version < OLDEST_GUEST

    def check_ready(self) -> None:
        """Raises `GuestUnavailable` while the guest is away, `SandboxLost` after the sandbox's end.

        Raises `WrongState` if the guest is `outdated`.
        """
        if self._lost is not None:
            raise self._lost
        if not self.connected:
            raise GuestUnavailable(f"the guest of sandbox {self.sandbox_id!r} is reconnecting; try again")
        self.check_version(OLDEST_GUEST, "runs nothing new")

    def check_version(self, needed: int, what: str) -> None:
        """Raises `WrongState` if the guest is older than what it is to do. ``what`` completes "the sandbox ..."."""
        if self.version < needed:
            text = (
                f"sandbox {self.sandbox_id!r} was made by an earlier version of enclaved and {what}; make a new sandbox"
            )
            state, wanted = f"guest protocol {self.version}", f"guest protocol {needed}"
            raise WrongState(f"sandbox/{self.sandbox_id}", state, wanted, text)

    def start(
        self, name: str, job: WireJob, options: RunOptions, *, whole: bool = False
    ) -> tuple[Handle, OutputReader]:
        """Starts a job; returns its handle and a reader from the first byte on.

        ``name`` is new: see `Handle`, and `Handle.start` for ``whole``. Raises what `check_ready` raises, and
        `WrongState` for a job that is newer than the guest.
        """
        self.check_ready()
        self.check_version(job.needs_version, "cannot do that")
        handle = Handle(self, name, job, options)
        self.handles[name] = handle
        return handle, handle.start(whole=whole)

    def adopt(self, name: str, options: RunOptions) -> Handle:
        """Takes up an execution that an earlier daemon started, now or as soon as the guest is there.

        If it then turns out that the guest does not know it, it fails with `ExecutionNotFound`.
        """
        handle = Handle(self, name, None, options)
        self.handles[name] = handle
        if self._lost is not None:
            handle.fail(self._lost)
        elif self.connected:
            handle.resume(self._held.get(name))
        return handle

    def end_strangers(self) -> int:
        """Ends what the guest runs and nobody here knows of; returns how many that were.

        Most are jobs for calls that were cut: each is asked first, so that nothing half made is left of it. To be
        called when all that an earlier daemon has written down was adopted and the guest is there.
        """
        strangers = [name for name, hold in self._held.items() if not hold.ended and name not in self.handles]
        for name in strangers:
            self.send({"type": "signal", "execution": name, "number": int(signal.SIGTERM), "leader_only": False})
        if strangers:
            loop = asyncio.get_running_loop()
            loop.call_later(STRANGERS_GRACE_S, self._cancel, strangers, context=contextvars.Context())
        return len(strangers)

    def _cancel(self, names: Iterable[str]) -> None:
        for name in names:
            self.send({"type": "cancel", "execution": name})

    async def park(self) -> int:
        """Kills everything that runs in the sandbox, and returns how many processes that were.

        Raises `GuestUnavailable` if the guest does not confirm that nothing is left.
        """
        return integer(await self.ask("park", PARK_DEADLINE_S), "killed")

    async def ping(self, deadline_s: float) -> None:
        """Asks the guest for a sign of life. Raises `GuestUnavailable`."""
        try:
            await self.ask("ping", deadline_s)
        except SandboxLost as error:
            raise GuestUnavailable(str(error)) from error

    async def ask(self, kind: str, deadline_s: float, **fields: Any) -> Mapping[str, Any]:
        """Asks the guest something, and returns its answer as it came, unchecked but for its number.

        Raises `GuestUnavailable` if there is none in time, `SandboxLost` after the sandbox's end, `WrongState` if the
        guest is too old for the question.
        """
        if self._lost is not None:
            raise self._lost
        self._numbers += 1
        number = self._numbers
        answer: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            async with asyncio.timeout(deadline_s):
                if not self.connected:
                    await self._back_or_lost(answer)
                self.check_version(needed_for_frame(kind), f"does not know {kind!r}")
                if self.congested and kind not in _BOUNDED:
                    raise GuestUnavailable(f"the guest of sandbox {self.sandbox_id!r} does not read; try again")
                self.send({"type": kind, "number": number, **fields})
                return await answer
        except TimeoutError as error:
            raise GuestUnavailable(f"the guest of sandbox {self.sandbox_id!r} does not answer") from error
        finally:
            self._answers.pop(number, None)

    async def _back_or_lost(self, answer: asyncio.Future[Mapping[str, Any]]) -> None:
        """Waits for a guest that may be coming back. Raises why it will not as soon as that is known."""
        back = asyncio.ensure_future(self.wait_connected())
        try:
            await asyncio.wait((back, answer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            back.cancel()
        if answer.done():
            answer.result()

    def send(self, header: Mapping[str, Any], payload: bytes = b"") -> None:
        """Sends a frame if the guest is there and knows such. While too much waits for it, nobody asks for samples."""
        if self._peer is None or not self.connected or (self.congested and header["type"] == "sample"):
            return
        if self.version < needed_for_frame(header["type"]):
            return
        kind, frame = header["type"], encode_frame(dict(header), payload)
        if self._peer.is_slow and kind not in _BOUNDED:
            self._small_talk_bytes += len(frame)
        if kind in _PATIENT:
            self._later += frame
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(PATIENCE_S, self._send_later, context=contextvars.Context())
        else:
            later, self._later = self._later, b""
            self._peer.write(later + frame)

    def _send_later(self) -> None:
        """Sends what nothing came to go with."""
        self._timer = None
        later, self._later = self._later, b""
        if later and self._peer is not None:
            self._peer.write(later)

    def fail(self, error: EnclaveError) -> None:
        """The sandbox has ended: so has everything in it."""
        self._lost = error
        if self._attaching is not None:
            self._attaching.stop()
        for handle in list(self.handles.values()):
            handle.fail(error)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)
                answer.exception()  # who asked may still wait for the guest, and not for this

    async def close(self) -> None:
        """Stops listening, drops the guest and removes the socket. Executions are lost."""
        if self._lost is None:
            self.fail(SandboxLost(self.sandbox_id, "it was removed"))
        if self._peer is not None:
            self._peer.abort()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        if self._attaching is not None:
            await self._attaching.stopped()
        with contextlib.suppress(OSError):
            (self.directory / SOCKET_NAME).unlink(missing_ok=True)
            self.directory.rmdir()

    def leave(self) -> None:
        """Stops listening and drops the guest, which goes on and waits for the next daemon."""
        if self._attaching is not None:
            self._attaching.stop()
        if self._server is not None:
            self._server.close()
        if self._peer is not None:
            self._peer.abort()

    # -- what the connection tells

    def on_hello(self, peer: Peer, header: Mapping[str, Any]) -> None:
        if self._peer is not None and self._peer is not peer:
            raise FrameError("a second guest")
        if string(header, "sandbox") != self.sandbox_id:
            raise FrameError("the guest of another sandbox")
        version = integer(header, "version")
        oldest = integer(header, "oldest") if "oldest" in header else version
        if oldest > PROTOCOL_VERSION:
            self.stranger = f"its guest speaks protocol {oldest} to {version}, and this daemon {PROTOCOL_VERSION}"
            raise FrameError(self.stranger)
        self.version = min(version, PROTOCOL_VERSION)
        if self.has_met and "met" in header and not boolean(header, "met"):  # older guests do not say it
            self.is_another = True
            self.fail(SandboxLost(self.sandbox_id, "its container was restarted by somebody else"))
            raise FrameError("a guest that was started anew")
        self.python_version = string(header, "python")[:32]
        self._peer = peer
        self._held = {}

    def on_frame(self, peer: Peer, header: Mapping[str, Any], payload: bytes) -> None:
        """Takes in one frame. Raises FrameError for nonsense."""
        kind = header["type"]
        if kind == "hello":
            self.on_hello(peer, header)
        elif peer is not self._peer:
            raise FrameError("no hello")
        elif kind == "holds":
            self._on_holds(header)
        elif kind == "ready":
            self._away.clear()
            self._ready.set()
            self.has_met = True
            for handle in list(self.handles.values()):
                handle.resume(self._held.get(handle.name))
            if self.on_ready is not None:
                self.on_ready()
        elif kind in _ANSWERS:
            answer = self._answers.get(integer(header, "number"))
            if kind == "parked":
                integer(header, "killed")
            if answer is not None and not answer.done():
                answer.set_result(header)
        else:
            name = string(header, "execution")
            known = self.handles.get(name)
            if known is not None:
                known.on_frame(kind, header, payload)
            elif kind == "finished" and name in self._held:  # for whoever adopts it later
                self._held[name] = replace(self._held[name], ended=True, report=header)

    def _on_holds(self, header: Mapping[str, Any]) -> None:
        if len(self._held) < HELD_MOST:
            offset = integer(header, "stdin_offset") if "stdin_offset" in header else 0
            ended = string(header, "state") == "ended"
            self._held[string(header, "execution")] = Hold(ended, offset, boolean(header, "stdin_ended"))

    def on_caught_up(self, peer: Peer) -> None:
        """The guest has read nearly all that waited for it."""
        if peer is self._peer:
            self._small_talk_bytes = 0
            for handle in list(self.handles.values()):
                handle.pay()

    def on_gone(self, peer: Peer) -> None:
        """The connection is gone; the guest will come back unless it died."""
        if peer is self._peer:
            self._small_talk_bytes = 0
            self._later = b""
            self._peer = None
            self._ready.clear()
            self._away.set()

    def may_connect(self, uid: int) -> bool:
        """Whether a process of this user may be the guest."""
        is_guest = uid in self._guest_uids or uid == self._mapped_root
        return is_guest and self._peer is None and self._lost is None
