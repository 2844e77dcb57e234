"""The daemon's side of the connection to one guest: it listens, the guest connects and reconnects.

Everything that comes from a guest is hostile: frames are length-limited by the codec, every field is checked here or
in ``handle.py``, and nonsense ends the connection. Frames: docs/guest-protocol.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import signal
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from enclaved.agent.fields import boolean, integer, string
from enclaved.agent.guest.frames import FrameDecoder, FrameError, encode_frame
from enclaved.agent.guest.limits import PROTOCOL_VERSION
from enclaved.agent.handle import Handle, RunOptions
from enclaved.agent.jobs import WireJob
from enclaved.agent.reader import OutputReader
from enclaved.agent.sender import Hold
from enclaved.errors import EnclaveError, GuestUnavailable, NoSpace, SandboxLost

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
_SOCKET_PATH_MAX = 107
_BOUNDED = frozenset({"run", "job", "stdin", "credit", "park"})
"""Frames of which there cannot be many: one for each execution, within a window, or one at a time."""
_PATIENT = frozenset({"may_go"})
"""Frames for which alone nobody need be woken: they go with the next one, or after `PATIENCE_S`."""
_ANSWERS = frozenset({"pong", "parked", "paused", "context", "contexts", "context_refused"})


class GuestLink:
    """Listens for one sandbox's guest, and routes frames between it and its executions."""

    def __init__(self, sandbox_id: str, directory: Path, *, group_id: int, guest_uids: Collection[int]) -> None:
        self.sandbox_id = sandbox_id
        self.directory = directory
        self.handles: dict[str, Handle] = {}
        self.python_version = ""
        self.on_ready: Callable[[], None] | None = None
        """Called each time when the guest is there."""
        self.has_met = False
        """Whether the guest has met this daemon, or an earlier one."""
        self.is_another = False
        """Whether a guest came that has met no daemon, where one had: its container was started anew."""
        self._group_id = group_id
        self._guest_uids = guest_uids
        self._server: asyncio.Server | None = None
        self._peer: _Peer | None = None
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

    async def listen(self) -> None:
        """Makes the directory and listens in it. Raises `NoSpace` if the host does not let it."""
        path = self.directory / SOCKET_NAME
        if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
            raise NoSpace(str(path), f"the socket path {path} is too long; choose a shorter state directory")
        try:
            self.directory.mkdir(mode=0o710, parents=True, exist_ok=True)
            os.chown(self.directory, -1, self._group_id)
            self.directory.chmod(0o710)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                path.unlink(missing_ok=True)
                sock.bind(str(path))
                os.chown(path, -1, self._group_id)
                path.chmod(0o660)
            except OSError:
                sock.close()
                raise
        except OSError as error:
            raise NoSpace(str(path), f"cannot listen on {path}: {error.strerror}") from error
        loop = asyncio.get_running_loop()
        # In two steps: whoever is cancelled in between has a server that can be closed.
        self._server = await loop.create_unix_server(lambda: _Peer(self), sock=sock, backlog=4, start_serving=False)
        await self._server.start_serving()

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

    def check_ready(self) -> None:
        """Raises `GuestUnavailable` while the guest is away, `SandboxLost` after the sandbox's end."""
        if self._lost is not None:
            raise self._lost
        if not self.connected:
            raise GuestUnavailable(f"the guest of sandbox {self.sandbox_id!r} is reconnecting; try again")

    def start(
        self, name: str, job: WireJob, options: RunOptions, *, whole: bool = False
    ) -> tuple[Handle, OutputReader]:
        """Starts a job; returns its handle and a reader from the first byte on.

        ``name`` is new: see `Handle`, and `Handle.start` for ``whole``. Raises what `check_ready` raises.
        """
        self.check_ready()
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

        Raises `GuestUnavailable` if there is none in time, `SandboxLost` after the sandbox's end.
        """
        if self._lost is not None:
            raise self._lost
        self._numbers += 1
        number = self._numbers
        answer: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            async with asyncio.timeout(deadline_s):
                await self.wait_connected()  # it may be coming back at this moment
                if self.congested and kind not in _BOUNDED:
                    raise GuestUnavailable(f"the guest of sandbox {self.sandbox_id!r} does not read; try again")
                self.send({"type": kind, "number": number, **fields})
                return await answer
        except TimeoutError as error:
            raise GuestUnavailable(f"the guest of sandbox {self.sandbox_id!r} does not answer") from error
        finally:
            self._answers.pop(number, None)

    def send(self, header: Mapping[str, Any], payload: bytes = b"") -> None:
        """Sends a frame if the guest is there. While too much waits for it, nobody is asked for samples."""
        if self._peer is None or not self.connected or (self.congested and header["type"] == "sample"):
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
        with contextlib.suppress(OSError):
            (self.directory / SOCKET_NAME).unlink(missing_ok=True)
            self.directory.rmdir()

    def leave(self) -> None:
        """Stops listening and drops the guest, which goes on and looks for the next daemon."""
        if self._server is not None:
            self._server.close()
        if self._peer is not None:
            self._peer.abort()

    # -- what the connection tells

    def on_hello(self, peer: _Peer, header: Mapping[str, Any]) -> None:
        if self._peer is not None and self._peer is not peer:
            raise FrameError("a second guest")
        if string(header, "sandbox") != self.sandbox_id:
            raise FrameError("the guest of another sandbox")
        version = integer(header, "version")
        if version != PROTOCOL_VERSION:
            raise FrameError(f"protocol version {version}, wanted {PROTOCOL_VERSION}")
        if self.has_met and "met" in header and not boolean(header, "met"):  # older guests do not say it
            self.is_another = True
            self.fail(SandboxLost(self.sandbox_id, "its container was restarted by somebody else"))
            raise FrameError("a guest that was started anew")
        self.python_version = string(header, "python")[:32]
        self._peer = peer
        self._held = {}

    def on_frame(self, peer: _Peer, header: Mapping[str, Any], payload: bytes) -> None:
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

    def on_caught_up(self, peer: _Peer) -> None:
        """The guest has read nearly all that waited for it."""
        if peer is self._peer:
            self._small_talk_bytes = 0
            for handle in list(self.handles.values()):
                handle.pay()

    def on_gone(self, peer: _Peer) -> None:
        """The connection is gone; the guest will come back unless it died."""
        if peer is self._peer:
            self._small_talk_bytes = 0
            self._later = b""
            self._peer = None
            self._ready.clear()
            self._away.set()

    def may_connect(self, uid: int) -> bool:
        """Whether a process of this user may be the guest."""
        return uid in self._guest_uids and self._peer is None and self._lost is None


class _Peer(asyncio.Protocol):
    """One connection to the listening socket: whoever it is, until the hello has been checked."""

    def __init__(self, link: GuestLink) -> None:
        self._link = link
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self.is_slow = False
        """Whether more waits for it than a socket takes at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = connection = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", credentials)
        if not self._link.may_connect(uid):
            log.warning("connection refused", extra={"sandbox_id": self._link.sandbox_id, "peer_uid": uid})
            connection.abort()

    def data_received(self, data: bytes) -> None:
        try:
            for header, payload in self._decoder.feed(data):
                self._link.on_frame(self, header, payload)
        except FrameError as error:
            log.error("guest dropped", extra={"sandbox_id": self._link.sandbox_id, "reason": str(error)[:500]})
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.on_gone(self)

    def pause_writing(self) -> None:
        self.is_slow = True

    def resume_writing(self) -> None:
        self.is_slow = False
        self._link.on_caught_up(self)

    def write(self, data: bytes) -> None:
        """Queues bytes. Jobs and input are bounded by the number of executions and their windows, the rest by `send`.

        The end of a reader is always told; there are no more of them than were let in.
        """
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def abort(self) -> None:
        """Drops the connection."""
        if self._transport is not None:
            self._transport.abort()
        self._link.on_gone(self)
