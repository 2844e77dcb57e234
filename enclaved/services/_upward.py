"""The upward half of Execute: what a client says to an execution while it runs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from ms_enclave.v1.execution_service_pb2 import ExecuteRequest, Stdin

from enclaved.core.executions import Execution
from enclaved.errors import InvalidRequest
from enclaved.services import _convert as convert
from enclaved.services import _fields as fields

INPUT_AHEAD_BYTES: Final = 256 * 1024
"""Input beyond which the stream is not read on until the program has taken some."""

_COST_BYTES: Final = 256  # of a piece, beside its bytes


class _Input(NamedTuple):
    """A piece of input, or (``data=None``) its end."""

    data: bytes | None
    offset: int | None = None

    @property
    def cost_bytes(self) -> int:
        return len(self.data or b"") + _COST_BYTES


class Upward:
    """Hands what a client sends to its execution.

    Input that the program does not read yet waits here, so that a signal behind it is heard; there is at most
    `INPUT_AHEAD_BYTES` of it and one piece. What makes no sense raises `InvalidRequest` and so ends the call; to the
    execution that is a client that left.
    """

    def __init__(self, execution: Execution, observe: bool) -> None:
        self._execution = execution
        self._observe = observe
        self._waiting: deque[_Input] = deque()
        self._waiting_bytes = 0
        self._changed = asyncio.Condition()

    async def take(self, requests: AsyncIterator[ExecuteRequest]) -> None:
        """Takes messages until the client ends its half. Raises `InvalidRequest`."""
        execution = self._execution
        async for request in requests:
            match request.WhichOneof("message"):
                case "stdin":
                    await self._put(_piece(request.stdin))
                case "end_of_input":
                    await self._put(_Input(None))
                case "signal":
                    number = convert.signal_number(request.signal, "signal")
                    execution.signal(number, leader_only=request.signal.leader_only)
                case "resize":
                    execution.resize(convert.terminal_size(request.resize, "resize"))
                case "acknowledge" if self._observe:
                    text = "one who observes releases nothing; attach without `observe`"
                    raise InvalidRequest.of("acknowledge", text)
                case "acknowledge":
                    offsets = convert.offsets(request.acknowledge.offsets, "acknowledge.offsets")
                    await execution.acknowledge(offsets, self)
                case "cancel":
                    execution.cancel("its client")
                case ("start" | "attach") as name:
                    raise InvalidRequest.of(name, "must be the first message only")
                case _:
                    raise InvalidRequest.of("message", "is empty or of a kind that this version does not know")

    async def write_input(self) -> None:
        """Writes the input that came, for as long as the program takes it. Never returns. Raises `InvalidRequest`."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._waiting)
                piece = self._waiting.popleft()
            if piece.data is None:
                await self._execution.end_input()
            else:
                await self._execution.write_stdin(piece.data, piece.offset)
            async with self._changed:
                self._waiting_bytes -= piece.cost_bytes
                self._changed.notify_all()

    async def _put(self, piece: _Input) -> None:
        async with self._changed:
            self._waiting.append(piece)
            self._waiting_bytes += piece.cost_bytes
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._waiting_bytes <= INPUT_AHEAD_BYTES)


def _piece(stdin: Stdin) -> _Input:
    offset = stdin.offset if stdin.HasField("offset") else None
    if offset is not None:
        fields.not_negative(offset, "stdin.offset")
    return _Input(fields.chunk(stdin.data, "stdin.data"), offset)
