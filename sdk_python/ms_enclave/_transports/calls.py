"""One call at a time: lends a channel, sets the deadline, tries again, and speaks our errors instead of gRPC's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

import grpc.aio

from ms_enclave import _status as status
from ms_enclave._transports.channels import Channels, Stubs
from ms_enclave._transports.credentials import HTTPS, Credentials
from ms_enclave._transports.retry import Retries
from ms_enclave.errors import (
    DaemonUnavailable,
    DeadlineExceeded,
    EnclaveError,
    EngineUnavailable,
    InternalError,
    ShuttingDown,
    Unavailable,
)

REQUEST_S: Final = 60.0
"""How long a call may take that neither runs a program nor makes a sandbox."""

_DETAILS_KEY = "grpc-status-details-bin"
_NOT_SENT = "failed to connect"
_CORE_ERROR = "Internal error from Core"
_STATUS_LOOKS = 100
_STATUS_LOOK_S = 0.01
_HINT = "start one with 'enclaved run' or 'systemctl start enclaved', or correct MS_ENCLAVE_ADDRESS"
_NO_PERMISSION = "Permission denied"
_HANDSHAKE = "handshake"
_TLS_HINT = (
    "set MS_ENCLAVE_CA to the file with the certificate of the authority that signed the daemon's, use the name that "
    "this one has, and look whether it has expired"
)
_PERMISSION_HINT = (
    "join the group that owns it ('sudo usermod -aG ms-enclave USER', then log in again), "
    "or use a daemon of your own: unset MS_ENCLAVE_ADDRESS"
)

ResponseT = TypeVar("ResponseT")


class Calls:
    """Calls to the daemon at one address, from any event loop."""

    def __init__(
        self,
        address: str,
        revive: Callable[[], Awaitable[None]] | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """``revive`` is awaited before another attempt at a daemon that does not answer; it may start one."""
        self.address = address
        self._revive = revive
        self._channels = Channels(address, credentials)
        self._reached = False

    async def unary(
        self,
        pick: Callable[[Stubs], Callable[..., Awaitable[ResponseT]]],
        request: object,
        *,
        timeout_s: float = REQUEST_S,
        retries: Retries | None = None,
    ) -> ResponseT:
        """Makes a call that is safe to repeat, and repeats it while the daemon does not answer.

        ``timeout_s`` is the deadline of each attempt. Pass ``retries`` (from `retries`) to learn afterwards whether
        there was more than one attempt, or to allow none.
        """
        left = self.retries() if retries is None else retries
        while True:
            try:
                with self.call(timeout_s) as stubs:
                    return checked(await pick(stubs)(request, timeout=timeout_s))
            except Unavailable as error:
                await self.wait(left, error)

    @property
    def reached(self) -> bool:
        """Whether a daemon ever answered."""
        return self._reached

    def retries(self) -> Retries:
        """Makes the waits of one call."""
        return Retries(reached=self._reached)

    async def wait(self, left: Retries, error: EnclaveError) -> None:
        """Waits before another attempt, or raises ``error`` if there should be none."""
        wait_s = left.wait_s(error)
        if wait_s is None:
            raise left.last_word(error) from None
        left.may_be_done = left.may_be_done or _may_be_done(error)
        await asyncio.sleep(wait_s)
        if self._revive is not None and isinstance(error, DaemonUnavailable):
            await self._revive()

    @contextlib.contextmanager
    def call(self, timeout_s: float) -> Iterator[Stubs]:
        """Lends the stubs for one attempt, and turns what gRPC raises within into our errors."""
        try:
            with self._channels.stubs() as stubs:
                yield stubs
        except grpc.aio.AioRpcError as error:
            raise self._error(error, timeout_s) from None
        except asyncio.CancelledError:
            # gRPC raises this as well when the other side ended the call. Only a task that was asked to stop stops.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise self._ended() from None
        else:
            self._reached = True

    def _ended(self) -> DaemonUnavailable:
        return DaemonUnavailable(f"the daemon at {self.address} ended the call; try again")

    def _error(self, error: grpc.aio.AioRpcError, timeout_s: float) -> EnclaveError:
        number, _ = error.code().value
        if error.code() is grpc.StatusCode.CANCELLED:
            return self._ended()
        details = next((value for key, value in error.trailing_metadata() or () if key == _DETAILS_KEY), b"")
        found = status.error_of(number, error.details() or "", details if isinstance(details, bytes) else b"")
        if isinstance(found, DeadlineExceeded):
            return DeadlineExceeded(f"the daemon at {self.address} did not answer within {timeout_s:g} seconds")
        if not isinstance(found, DaemonUnavailable):
            self._reached = True
            return found
        if self._reached:
            return DaemonUnavailable(f"the daemon at {self.address} stopped answering: {found.message}")
        if self.address.startswith(HTTPS) and _HANDSHAKE in found.message:
            return DaemonUnavailable(f"no trusted connection to {self.address} ({found.message}); {_TLS_HINT}")
        if _NO_PERMISSION in found.message:
            return DaemonUnavailable(f"no permission on the daemon's socket at {self.address}: {_PERMISSION_HINT}")
        return DaemonUnavailable(f"no daemon answers at {self.address} ({found.message}); {_HINT}")


def checked(message: ResponseT) -> ResponseT:
    """Returns what a daemon answered. Raises `InternalError` for bytes that are no message: gRPC returns nothing."""
    if message is None:
        raise InternalError("the daemon answered with something that is no message of its contract")
    return message


def _may_be_done(error: EnclaveError) -> bool:
    """Whether a call that failed so may have been done: not if nobody got it, and not if the daemon refused it."""
    if isinstance(error, DaemonUnavailable):
        return _NOT_SENT not in error.message
    return not isinstance(error, ShuttingDown | EngineUnavailable)


def is_core_error(error: grpc.aio.AioRpcError) -> bool:
    """Whether gRPC put an error of its own in the place of the daemon's status."""
    return error.details() == _CORE_ERROR


class DaemonStatus:
    """The status with which a daemon ended a call while we were still writing.

    gRPC puts an internal error of its own in its place, made when the next write fails (grpc/grpc issue 36066):
    before the daemon's status arrives, which then takes its place again, or after that, and then it is gone.
    """

    def __init__(self, call: grpc.aio.Call) -> None:
        self._call = call
        self._first: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    async def instead_of(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """Returns the daemon's status if ``error`` is gRPC's own and the other is known or arrives within a second."""
        if not is_core_error(error):
            return error
        for _ in range(_STATUS_LOOKS):
            if self._first is not None:
                return self._first
            await asyncio.sleep(_STATUS_LOOK_S)  # gRPC tells nobody that the status changed
            self._note(self._call)
        return error

    def _note(self, call: grpc.aio.Call) -> None:
        # The call is done, so these coroutines have nothing to wait for.
        details = _at_once(call.details())
        if details != _CORE_ERROR:
            trailing = _at_once(call.trailing_metadata())
            self._first = grpc.aio.AioRpcError(_at_once(call.code()), grpc.aio.Metadata(), trailing, details)


def _at_once(coroutine: Coroutine[Any, Any, ResponseT]) -> ResponseT:
    try:
        coroutine.send(None)
    except StopIteration as stop:
        found: ResponseT = stop.value
        return found
    coroutine.close()
    raise RuntimeError("gRPC made us wait for the status of a call that is done")
