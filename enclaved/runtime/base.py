"""The seam to whatever runs sandboxes: one Protocol, plain frozen dataclasses across it, no callbacks.

Everything privileged lives behind it, so that it can become a process of its own one day. The promises below are
the contract that ``testing/contracts`` checks for every implementation.
"""

from __future__ import annotations

import enum
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from enclaved.model import EngineInfo, PortMapping, PullProgress, ResourceUsage, SandboxSpec

LABEL_ID = "enclaved.id"
"""Label with the sandbox's id. Images can imitate labels: only the HMAC proves that a container is ours."""
HOST_NAME = "sandbox"
"""What every sandbox calls itself."""
LABEL_OWNER = "enclaved.owner"
"""Label with the id of the state directory whose daemon made the container."""
LABEL_UID = "enclaved.uid"
"""Label with the user id of the sandbox's programs."""
LABEL_HMAC = "enclaved.hmac"
"""Label with the HMAC over the labels above, under the state directory's key."""

STDERR_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Image:
    """An image that the engine has."""

    id: str
    """Its digest on the engine: ``sha256:`` and 64 hex digits."""
    name: str
    """The name under which it was found (after aliases)."""
    env: Mapping[str, str]
    """Its environment, which programs see and the guest does not."""
    volumes: tuple[str, ...]
    """Paths that it declares as volumes; they get bounded tmpfs mounts."""
    digests: tuple[str, ...] = ()
    """Digests that registries have it under, beside ``id``."""


@dataclass(frozen=True, slots=True)
class GuestSettings:
    """What the guest must know before it has a connection. Visible to user code: no secrets in here."""

    sandbox_id: str
    uid: int
    """User of user code."""
    working_dir: str
    expires_in_s: float
    """The guest exits by itself after this time, should the daemon fail to remove it."""
    daemon_absence_s: float
    """The guest exits after this time without a daemon; 0: never."""
    memory_limit_bytes: int
    open_files_limit: int = 1024
    file_size_limit_bytes: int = 0
    """Largest file a program may write (RLIMIT_FSIZE); 0: no limit of its own."""
    scratch_dirs: tuple[str, ...] = ()
    """Where user code may write beside the working directory. Empty outside a container."""
    connect_patience_s: float = 0.0
    """The guest exits, with a code of its own, if it cannot connect for the first time so long; 0: never."""
    owns_mounts: bool = True
    """Whether the table of mounts is the sandbox's own, so that nobody else changes it."""
    writes_on_host: bool = False
    """Whether user code may write to a directory of the host, where it is to make no files that run as their owner."""
    gid: int = 0
    """Group of user code; 0: the same number as ``uid``."""

    @property
    def group(self) -> int:
        """Group of user code."""
        return self.gid or self.uid


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """What a runtime needs to give a sandbox a network of which only the outside can be reached."""

    guard: Image
    """An image that the operator trusts, with Python: in it runs what sets the packet filter."""
    labels: Mapping[str, str]
    """Labels of the daemon's networks."""
    resolvers: tuple[str, ...]
    """Addresses of name servers. They can be asked although they may lie in a network that is closed otherwise."""
    host_addresses: tuple[str, ...] = ()
    """Addresses of this machine, which are closed as private ones are."""


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """Everything that a runtime needs to make the container of one sandbox."""

    image: Image
    spec: SandboxSpec
    settings: GuestSettings
    guest_file: Path
    """The guest on the host, mode 0444; mounted read-only."""
    socket_dir: Path
    """The directory on the host that holds the listening socket ``agent.sock``; mounted read-only."""
    account_dir: Path
    """The directory on the host with ``passwd``, ``group`` and ``hosts``, and with a network ``resolv.conf``, all
    mounted read-only over the image's."""
    group_id: int
    """Group under which the guest may reach the socket."""
    labels: Mapping[str, str]
    interpreter_dir: Path | None = None
    """The guest's own interpreter on the host, for images without Python; mounted read-only. None: the image's."""
    guest_arguments: tuple[str, ...] = ()
    """The guest in pieces, for an engine that does not see the daemon's files: then nothing is mounted, and the frames
    travel over `Runtime.channel`. Empty: the guest is mounted and connects to the socket."""
    mounts_accounts: bool = False
    """Whether ``account_dir`` is mounted although the guest comes in pieces, as for a runtime that has no sockets."""
    engine_runtime: str = ""
    """Which of the engine's runtimes isolates it; empty: its default one."""
    network: NetworkPlan | None = None
    """Needed where the spec has a network."""


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """What the engine says of a container."""

    running: bool
    paused: bool
    exit_code: int | None
    """Exit code of the guest, once it ended."""
    oom_killed: bool
    error: str
    pid: int = 0
    """Its first process as the engine's host counts; 0: it has none, or nobody says."""


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """A container that carries `LABEL_ID`."""

    id: str
    labels: Mapping[str, str]
    running: bool
    """Also while it is paused."""
    paused: bool = False


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """A network that carries `LABEL_OWNER`."""

    id: str
    labels: Mapping[str, str]


class ContainerChange(enum.Enum):
    """What an engine may tell of a container."""

    SIGNALLED = enum.auto()
    """The engine was asked to send it a signal."""
    ENDED = enum.auto()
    STOPPED = enum.auto()
    RESTARTED = enum.auto()
    REMOVED = enum.auto()
    OUT_OF_MEMORY = enum.auto()
    PAUSED = enum.auto()
    RESUMED = enum.auto()
    UPDATED = enum.auto()
    """Its limits may be others."""
    RENAMED = enum.auto()
    COMMAND_RUN = enum.auto()
    """The engine started a program in it."""
    FILES_COPIED = enum.auto()
    """The engine copied files out of it or into it."""
    NETWORK_CONNECTED = enum.auto()
    """It was given a network."""


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """Something that happened to a container, whoever did it."""

    container_id: str
    change: ContainerChange
    at_ns: int
    """When, by the engine's clock, which says nothing but what came before what."""


@dataclass(frozen=True, slots=True)
class Counters:
    """How often a sandbox met the limits of its control group since it was made, and what it used at most until then.

    The bytes and numbers of processes are 0 where they are not known, and as long as no limit was met.
    """

    oom_kills: int
    pids_limit_hits: int
    memory_peak_bytes: int = 0
    memory_limit_bytes: int = 0
    pids_peak: int = 0
    pids_limit: int = 0


class ByteChannel(Protocol):
    """A stream of bytes to and from a guest's standard input and output."""

    async def read(self) -> bytes:
        """Waits for the next bytes; returns none once the stream has ended."""
        ...

    async def write(self, data: bytes) -> None:
        """Sends bytes, and waits while too many are on their way. What a stream that has ended is given is lost."""
        ...


class StderrTail(Protocol):
    """The end of what a guest wrote to its standard error while it started."""

    def text(self) -> str:
        """At most the last 64 KiB, decoded with replacement."""
        ...


class Runtime(Protocol):
    """Makes, starts, looks at and removes containers. Every call has a deadline of its own.

    Every method may raise `EngineUnavailable` (no answer, no permission, deadline passed).
    """

    async def info(self) -> EngineInfo:
        """Asks the engine what it is."""
        ...

    async def resolve_image(self, image: str, *, may_pull: bool) -> Image:
        """Finds an image: by its name, by its alias, else (``may_pull``) by pulling it.

        Raises `ImageNotFound`, and `ImageUnusable` where its metadata cannot be neutralised.
        """
        ...

    def pull_image(self, image: str) -> AsyncGenerator[PullProgress]:
        """Pulls an image and tells how far it is; the last that comes has the id.

        A slow reader misses steps, never the last one of a layer. Who leaves does not end the pull. Raises what
        `resolve_image` raises.
        """
        ...

    async def create(self, plan: ContainerPlan) -> str:
        """Makes a container without starting it; returns its id.

        Raises `EngineRefused`, `ImageNotFound`, `NoSpace`. Leaves nothing behind when it fails or is cancelled.
        """
        ...

    def starting(self, container_id: str) -> AbstractAsyncContextManager[StderrTail]:
        """Starts a container and collects what the guest writes to standard error until the block ends.

        Raises `EngineRefused`, and `ImageUnusable` where the image cannot start ``python3``: with ``lacks_python`` if
        it has none and the plan names no ``interpreter_dir``.
        """
        ...

    def channel(self, container_id: str) -> AbstractAsyncContextManager[ByteChannel]:
        """Attaches to the guest of a started container whose plan has ``guest_arguments``.

        Who attaches later goes on in the same stream, wherever another one stopped; output that nobody reads is lost.
        Raises `EngineRefused`.
        """
        ...

    async def join_network(self, container_id: str, plan: ContainerPlan) -> tuple[PortMapping, ...]:
        """Gives a container that was started the network of its plan; returns the ports of the host that lead to it.

        Before this it can reach nobody, and afterwards only what its packet filter lets through, which was read back.
        Makes the network if there is none. Raises `EngineRefused`: then it has no network, and must not be used.
        """
        ...

    async def list_networks(self) -> list[NetworkRecord]:
        """Lists all networks that carry `LABEL_OWNER`, whoever made them."""
        ...

    async def remove_network(self, network_id: str) -> bool:
        """Removes a network; false if a container is in it. One that is gone is fine."""
        ...

    async def status(self, container_id: str) -> ContainerStatus | None:
        """Looks at a container; ``None`` if it is gone."""
        ...

    async def pause(self, container_id: str) -> None:
        """Freezes every process of a running container. One that is frozen is fine. Raises `EngineRefused`."""
        ...

    async def unpause(self, container_id: str) -> None:
        """Lets a frozen container go on. One that runs is fine. Raises `EngineRefused` for one that is gone."""
        ...

    async def update(self, container_id: str, spec: SandboxSpec) -> None:
        """Gives a container the limits of memory, CPU and processes that a spec names, also while it runs.

        Raises `EngineRefused`, such as where more memory is in use than there is to be.
        """
        ...

    async def has_limits(self, container_id: str, spec: SandboxSpec) -> bool:
        """Tells whether a container has the limits that a spec names. One that is gone has."""
        ...

    async def remove(self, container_id: str) -> None:
        """Kills a container at once and removes it with its anonymous volumes. One that is gone is fine."""
        ...

    async def list_records(self) -> list[ContainerRecord]:
        """Lists all containers that carry `LABEL_ID`, whoever made them, running or not."""
        ...

    def events(self, since_ns: int = 0) -> AbstractAsyncContextManager[AsyncIterator[ContainerEvent]]:
        """Tells what happens to containers, whoever made them, from the moment at which the block begins.

        ``since_ns``: also what happened since then (`ContainerEvent.at_ns`), as far as the engine remembers. An engine
        may lose events, repeat them and tell them late: they are hints where to look. The iterator ends, or raises
        `EngineUnavailable`, when the engine ends; it raises `EngineRefused` for an event that cannot be read.
        """
        ...

    def counters(self, container_id: str) -> Counters | None:
        """Reads the control group's counters; ``None`` where they cannot be seen. Does not block."""
        ...

    def usage(self, container_id: str) -> ResourceUsage | None:
        """Reads what the whole sandbox used up to now from its control group; ``None`` where that cannot be seen.

        Does not block. A number that the control group does not have is 0.
        """
        ...

    async def close(self) -> None:
        """Lets go of the engine. Containers stay as they are."""
        ...


def guest_argv(python: str, guest_file: str, socket_path: str, settings: GuestSettings, mode: str) -> list[str]:
    """The command line of the guest. ``mode`` is ``--container``, or ``--child`` outside a PID namespace."""
    return [python, *_FLAGS, guest_file, mode, socket_path, _json(settings)]


def attached_guest_argv(python: str, pieces: Sequence[str], settings: GuestSettings, mode: str) -> list[str]:
    """The command line of a guest that comes in pieces and speaks over its standard input and output."""
    return [python, *_FLAGS, "-c", _UNPACK, str(len(pieces)), *pieces, mode, "-", _json(settings)]


def _json(settings: GuestSettings) -> str:
    return json.dumps(asdict(settings), sort_keys=True)


_FLAGS = ("-I", "-S", "-E")
_UNPACK = (
    "import base64, sys, zlib; count = int(sys.argv.pop(1)); packed = ''.join(sys.argv[1:1 + count]); "
    "del sys.argv[1:1 + count]; source = zlib.decompress(base64.b85decode(packed)); "
    "name = '/run/enclave/guest.py'; exec(compile(source, name, 'exec'), {'__name__': '__main__', '__file__': name})"
)
