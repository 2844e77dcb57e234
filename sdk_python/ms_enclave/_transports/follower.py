"""An execution as its user holds it: from whichever event loop, for as long as the user likes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from ms_enclave._model import Channel, Event, Finished, TerminalSize
from ms_enclave._transports.calls import Calls
from ms_enclave._transports.session import Session, Track
from ms_enclave._transports.upward import Upward
from ms_enclave.errors import InvalidRequest, WrongState


class Follower:
    """Follows one execution. Each event loop that uses it gets a session of its own; the last one counts."""

    def __init__(self, calls: Calls, track: Track) -> None:
        self._calls, self._track = calls, track
        self._session: Session | None = None
        self._upward: Upward | None = None

    @property
    def execution_id(self) -> str:
        """Its id."""
        return self._track.execution_id

    @property
    def finished(self) -> Finished | None:
        """How it ended, as far as it was seen."""
        return self._track.finished

    @property
    def followed(self) -> bool:
        """Whether a stream of the running loop holds it."""
        session = self._session
        return session is not None and session.loop is asyncio.get_running_loop() and not session.over

    async def start(self) -> None:
        """Makes sure that it exists and is followed. Raises as `Transport.stream`."""
        await self._here().answered()

    def hold(self) -> None:
        """Follows it without reading, so that it does not count as left alone."""
        self._here()

    async def next(self) -> Event | None:
        """Returns the next event; ``None`` after the last. To be asked by one task at a time."""
        return await self._here().next()

    async def write(self, data: bytes) -> None:
        """Sends input; returns when it is on its way. Raises `InvalidRequest`, `WrongState`."""
        session = self._with_input()
        if session.upward.input_ended:
            raise WrongState(f"the input of execution {self._track.execution_id} was ended before")
        await session.writes(data)
        self._check_running()

    def end_input(self) -> None:
        """Says that no more input comes. Does nothing if that was said."""
        self._with_input().upward.end_input()

    def resize(self, size: TerminalSize) -> None:
        """Tells the terminal's size. Raises `InvalidRequest`."""
        self._with_input().upward.resize(size)

    def acknowledge(self, offsets: Mapping[Channel, int]) -> None:
        """Releases output below these offsets; from now on only this does. Raises `InvalidRequest`."""
        if self._track.observe:
            raise InvalidRequest("acknowledge: one who only observes releases nothing; attach without observe")
        self._here().upward.acknowledge(offsets)

    async def close(self) -> None:
        """Lets go of it. It goes on by itself, and using this again follows it again."""
        session, self._session = self._session, None
        if session is None:
            return
        if session.loop is asyncio.get_running_loop():
            await session.close()
        else:
            session.abandon()

    def _here(self) -> Session:
        """Returns the session of the running loop, made if there is none."""
        loop = asyncio.get_running_loop()
        session = self._session
        if session is not None and session.loop is loop and not session.spent:
            return session
        if session is not None:
            session.abandon()
        upward = self._upward
        ours = self._track.spec is not None
        self._upward = (
            Upward(knows_offset=ours, acknowledges=not self._track.observe) if upward is None else upward.moved()
        )
        self._session = Session(self._calls, self._track, self._upward)
        return self._session

    def _with_input(self) -> Session:
        spec = self._track.spec
        if self._track.observe:
            raise InvalidRequest("stdin: one who only observes sends nothing; attach without observe")
        if spec is not None and not spec.stdin and not spec.HasField("terminal"):
            raise InvalidRequest("stdin: this execution reads no input; start it with options.stdin=True")
        self._check_running()
        return self._here()

    def _check_running(self) -> None:
        if self._track.finished is not None:
            raise WrongState(f"execution {self._track.execution_id} has ended, and takes no more input")
