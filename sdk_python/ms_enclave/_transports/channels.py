"""Channels to one daemon: one for each event loop, because an aio channel belongs to the loop that made it.

Users call ``asyncio.run()`` several times and keep their objects; a channel whose loop is closed is dropped. gRPC
also cannot cross a fork while it has threads, and it has them as long as a channel exists. So before a fork all
channels are dropped if no call is under way; parent and child then open new ones when they need them. If calls are
under way they go on in the parent, and gRPC is unusable in the child, which says so instead of hanging.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import grpc.aio

from ms_enclave._forks import at_fork
from ms_enclave._transports.credentials import HTTPS, Credentials
from ms_enclave.errors import EnclaveError
from ms_enclave.v1 import context_service_pb2_grpc as context_grpc
from ms_enclave.v1 import execution_service_pb2_grpc as execution_grpc
from ms_enclave.v1 import file_service_pb2_grpc as file_grpc
from ms_enclave.v1 import image_service_pb2_grpc as image_grpc
from ms_enclave.v1 import pool_service_pb2_grpc as pool_grpc
from ms_enclave.v1 import sandbox_service_pb2_grpc as sandbox_grpc
from ms_enclave.v1 import system_service_pb2_grpc as system_grpc
from ms_enclave.v1 import tool_service_pb2_grpc as tool_grpc

_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # the daemon is on this machine or named by its user, never behind a web proxy
    ("grpc.use_local_subchannel_pool", 1),  # a channel shares nothing with those of other loops
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # In spite of its name: how long one attempt to connect may take. A daemon on a busy machine needs a moment.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_receive_message_length", 8 * 1024 * 1024),
)


class Stubs:
    """The services over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.sandboxes = sandbox_grpc.SandboxServiceStub(channel)
        self.executions = execution_grpc.ExecutionServiceStub(channel)
        self.contexts = context_grpc.ContextServiceStub(channel)
        self.tools = tool_grpc.ToolServiceStub(channel)
        self.files = file_grpc.FileServiceStub(channel)
        self.pools = pool_grpc.PoolServiceStub(channel)
        self.system = system_grpc.SystemServiceStub(channel)
        self.images = image_grpc.ImageServiceStub(channel)


class _Showing:
    """A channel that sends metadata with each call. Cheaper than interceptors, which make tasks of their own."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel, self._metadata = channel, metadata

    def __getattr__(self, kind: str) -> Any:
        make = getattr(self._channel, kind)
        return lambda *args, **options: partial(make(*args, **options), metadata=self._metadata)


@dataclass(slots=True)
class _Entry:
    loop: asyncio.AbstractEventLoop
    stubs: Stubs
    channel: grpc.aio.Channel


class Channels:
    """The channels to one target. Safe to use from any loop and thread."""

    def __init__(self, target: str, credentials: Credentials | None = None) -> None:
        """Takes a gRPC target, or ``https://host:port`` for TLS. Raises `InvalidRequest` (`Credentials.check`)."""
        self._target = target
        self._credentials = credentials or Credentials()
        self._credentials.check(target)
        self._lock = threading.Lock()
        """Guards everything below, and is held while the process forks."""
        self._entries: dict[int, _Entry] = {}
        self._calls = 0
        _FORKS.watch(self)

    @contextlib.contextmanager
    def stubs(self) -> Iterator[Stubs]:
        """Lends the stubs of the running loop for the duration of one call.

        Raises `EnclaveError` in a process that was forked while calls were under way.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            if _FORKS.broke_grpc:
                raise EnclaveError(
                    "this process was forked while its parent had calls to the daemon under way, which gRPC cannot "
                    "survive; start worker processes with the 'spawn' or 'forkserver' method of multiprocessing"
                )
            entry = self._entries.get(id(loop))
            if entry is None or entry.loop is not loop:
                entry = self._open(loop)
            self._calls += 1
        try:
            yield entry.stubs
        finally:
            with self._lock:
                self._calls -= 1

    def _open(self, loop: asyncio.AbstractEventLoop) -> _Entry:
        for key in [key for key, entry in self._entries.items() if entry.loop.is_closed()]:
            del self._entries[key]
        shown = self._credentials
        if self._target.startswith(HTTPS):
            trusted = grpc.ssl_channel_credentials(shown.ca)
            channel = grpc.aio.secure_channel(self._target.removeprefix(HTTPS), trusted, options=_OPTIONS)
        else:
            channel = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
        calling = cast("grpc.aio.Channel", _Showing(channel, shown.metadata)) if shown.metadata else channel
        entry = self._entries[id(loop)] = _Entry(loop, Stubs(calling), channel)
        return entry

    def before_fork(self) -> bool:
        """Stops new calls until after the fork, and drops the channels if none is in use. True if it dropped some."""
        self._lock.acquire()
        if self._calls or not self._entries:
            return False
        self._entries.clear()
        return True

    def after_fork(self) -> None:
        """Lets calls go on, in the parent and in the child."""
        self._lock.release()

    @property
    def in_use(self) -> bool:
        """Whether a call is under way."""
        return self._calls > 0


class _Forks:
    """Tells every `Channels` about forks."""

    def __init__(self) -> None:
        self._watched: weakref.WeakSet[Channels] = weakref.WeakSet()
        self._holding: list[Channels] = []
        self.broke_grpc = False
        """True in a child that was forked while gRPC had threads."""
        at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)

    def watch(self, channels: Channels) -> None:
        """Remembers one, as long as it lives."""
        self._watched.add(channels)

    def _before(self) -> None:
        self._holding = list(self._watched)
        dropped = [channels.before_fork() for channels in self._holding]
        if any(dropped):
            gc.collect()  # a finished call in a reference cycle would keep its channel, and gRPC's threads, alive

    def _in_parent(self) -> None:
        holding, self._holding = self._holding, []
        for channels in holding:
            channels.after_fork()

    def _in_child(self) -> None:
        # The channels of calls under way stay where they are: to free them would wait for threads that are not here.
        self.broke_grpc = self.broke_grpc or any(channels.in_use for channels in self._holding)
        self._in_parent()


_FORKS = _Forks()
"""The one piece of state that is truly the process's: a fork happens to all of it."""
