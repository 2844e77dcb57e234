"""The daemon that this process starts for itself when it finds no other: a child with a private socket and state.

The child holds the read end of a pipe whose write end only this process has. It ends, and removes its sandboxes
first, when the pipe closes: at our exit, and also after SIGKILL. A forked child of ours does not own it.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import os
import secrets
import shutil
import signal
import site
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ms_enclave._forks import CAN_FORK, at_fork
from ms_enclave.errors import DaemonStartFailed

START_S: Final = 60.0
"""How long it may take to answer: a second on a machine of its own, many times that on a busy one."""
STOP_S: Final = 30.0
"""How long it may take to remove its sandboxes at our exit, before it is killed."""
KILL_S: Final = 5.0
"""How long the kernel may take to end it then."""
LOG_LEVEL_VARIABLE: Final = "ENCLAVED_LOG_LEVEL"
API_KEYS_VARIABLE: Final = "ENCLAVED_HTTP_API_KEYS"
LOG_BYTES_MAX: Final = 1024 * 1024
LOG_BYTES_KEPT: Final = 64 * 1024
LOG_BYTES_SHOWN: Final = 4096

_POLL_S = 0.02
_DIRECTORY_BYTES_MAX = 60
"""Longest path of the directory, so that the sockets that the daemon makes below it stay within Linux's 107 bytes."""


@dataclass(frozen=True, slots=True)
class HttpListener:
    """How an embedded daemon is to serve the HTTP API."""

    address: str = ""
    """``host:port``; empty: a socket in its private directory."""
    api_key: str | None = None
    """What every request must have; ``None``: what the daemon's configuration says, by default nothing."""
    certfile: str = ""
    """The certificate and its chain (PEM); empty: plain HTTP."""
    keyfile: str = ""
    behind_proxy: bool = False
    """Whether a proxy before it ends TLS, so that it may be reached from elsewhere without."""
    log_level: str = "warning"
    shows_log: bool = False
    """Whether it writes its log where this process writes its own."""

    def arguments(self, directory: Path) -> list[str]:
        """Returns its part of the command line."""
        found = ["--listen-http", self.address or f"unix:{_http_socket(directory)}"]
        if self.certfile:
            found += ["--tls-cert", str(Path.cwd() / self.certfile), "--tls-key", str(Path.cwd() / self.keyfile)]
        return [*found, "--tls-behind-proxy", "true"] if self.behind_proxy else found

    def environment(self) -> dict[str, str]:
        """Returns its part of the environment, where nobody else can read it; of the key only the digest."""
        found = {LOG_LEVEL_VARIABLE: self.log_level}
        if self.api_key:
            found[API_KEYS_VARIABLE] = f"sha256:{hashlib.sha256(self.api_key.encode()).hexdigest()}"
        return found


class EmbeddedDaemon:
    """An embedded daemon of this process; at most one runs at a time. May be used from any thread."""

    def __init__(self, http: HttpListener | None = None) -> None:
        """``http``: whether and how it serves the HTTP API as well."""
        self._http = http
        # Other objects of this process have directories of their own; the one without HTTP is the process's.
        self._suffix = f"-{secrets.token_hex(2)}" if http else ""
        self._lock = threading.Lock()
        """Guards everything below, so that two threads do not start two daemons."""
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self._directory: Path | None = None
        self._served = 0
        """How many answered from this directory. All but the last have died and may have left sandboxes behind."""
        atexit.register(self.stop)
        at_fork(after_in_child=self._disown)

    @property
    def running_address(self) -> str | None:
        """Returns its address, or ``None`` while it does not run."""
        process, directory = self._process, self._directory
        if process is None or directory is None or process.poll() is not None:
            return None
        return _address(directory)

    @property
    def http_url(self) -> str | None:
        """Returns where it serves the HTTP API: ``http://host:port`` or ``unix:/path``; ``None`` while it does not."""
        directory = self._directory
        if self._http is None or directory is None or self.running_address is None:
            return None
        scheme = "https" if self._http.certfile else "http"
        return f"{scheme}://{self._http.address}" if self._http.address else f"unix:{_http_socket(directory)}"

    def wait(self) -> int | None:
        """Blocks until it ends, and returns its exit code; ``None`` if it does not run."""
        process = self._process
        return None if process is None else process.wait()

    def ensure(self) -> str:
        """Starts it unless it runs, waits until it answers, and returns its address. Blocks for at most 30 s.

        Raises `DaemonStartFailed` with the last that it said.
        """
        if not CAN_FORK:
            raise DaemonStartFailed(
                "this system can only be a client: sandboxes need Linux or a machine with it; set MS_ENCLAVE_ADDRESS "
                "to a daemon's host:port, or use HttpSandboxManager"
            )
        with self._lock:
            address = self.running_address
            if address is None:
                self._release()
                address = self._start()
            elif self._directory is not None:
                _trim(_log(self._directory))
            return address

    def revive(self, address: str) -> None:
        """Starts it again if it died, unless ``address`` is that of another daemon."""
        directory = self._directory
        if directory is not None and address == _address(directory):
            self.ensure()

    def stop(self) -> None:
        """Ends it with all its sandboxes; kills it if that takes longer than 30 s. Does nothing if none runs."""
        with self._lock:
            process = self._process
            self._release()
            if process is not None and process.returncode == 0 and self._served == 1:
                self._forget_directory()
            self._directory = None  # what is left in it is for the next embedded daemon to clear away
            self._served = 0

    def _start(self) -> str:
        # In the same directory as before, if it died: that is where what it left behind will be found.
        directory = self._directory = self._directory or private_directory(self._suffix)
        arguments: list[str] = []
        environment = _environment()
        if self._http is not None:
            arguments = self._http.arguments(directory)
            environment = {**environment, **self._http.environment()}
        reader, self._pipe = os.pipe()
        try:
            _socket(directory).unlink(missing_ok=True)
            with _log(directory).open("ab") as log:
                output = None if self._shows_log else log
                self._process = process = subprocess.Popen(
                    [*_command(directory, reader), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(reader,),
                    env=environment,
                    cwd="/",
                    start_new_session=True,
                )
        except OSError as error:
            self._release()
            raise DaemonStartFailed(f"cannot start an embedded daemon with {sys.executable}: {error}") from error
        finally:
            os.close(reader)
        problem = _wait_until_it_listens(process, directory)
        if problem:
            self._release()
            said = "; it says why above" if self._shows_log else f":\n{_last_words(directory)}"
            if not self._served:
                self._forget_directory()
            raise DaemonStartFailed(f"{problem}{said}")
        self._served += 1
        return _address(directory)

    @property
    def _shows_log(self) -> bool:
        return self._http is not None and self._http.shows_log

    def _forget_directory(self) -> None:
        """Removes the directory of a daemon that left nothing behind."""
        directory, self._directory = self._directory, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
            with contextlib.suppress(OSError):
                directory.parent.rmdir()  # unless other processes have theirs in it

    def _release(self) -> None:
        """Closes the pipe, which ends the daemon, and waits for its end."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            os.close(pipe)
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(KILL_S)

    def _disown(self) -> None:
        """In a forked child: lets go of the pipe, so that the daemon still ends with its real owner."""
        self._lock = threading.Lock()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            os.close(pipe)
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # it is not our child, so there is nothing to wait for
        self._directory = None
        self._served = 0


def private_directory(suffix: str = "") -> Path:
    """Makes the directory of this process's daemon: ``$XDG_RUNTIME_DIR/ms-enclave/<pid>-<starttime><suffix>``.

    Without a runtime directory it is below the temporary directory. Nobody else can read it.
    Raises `DaemonStartFailed` if there is no place for it.
    """
    name = f"{os.getpid()}-{_start_time()}{suffix}"
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    places = [Path(runtime_dir, "ms-enclave")] if runtime_dir else []
    # Below /tmp in any case, since others may be too long; what somebody else made there is not used.
    places += [Path(place, f"ms-enclave-{os.geteuid()}") for place in (tempfile.gettempdir(), "/tmp")]  # noqa: S108
    for place in places:
        directory = place / name
        if len(os.fsencode(directory)) <= _DIRECTORY_BYTES_MAX and _make_private(place) and _make_private(directory):
            return directory
    tried = ", ".join(str(place) for place in places)
    raise DaemonStartFailed(f"no private directory for an embedded daemon: none of {tried} can be made for you alone")


def _make_private(directory: Path) -> bool:
    """Makes a directory for this user alone. False if that is impossible, or if somebody else made it first."""
    try:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _start_time() -> int:
    """Returns when this process started, in clock ticks; with the pid it names a process for good."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return int(fields[19])
    except OSError:
        return int(time.time())  # no /proc: unique enough, since the directory is made once


def _command(directory: Path, parent_fd: int) -> list[str]:
    return [
        *(sys.executable, "-P", "-m", "enclaved", "run"),
        *("--embedded-parent-fd", str(parent_fd)),
        *("--embedded-working-dir", _working_dir()),
        *("--state-dir", str(directory / "state")),
        *("--listen-unix", str(_socket(directory))),
        *("--metrics", ""),
    ]


def _working_dir() -> str:
    """Returns where this process works: what is below it may be mounted. Empty if that has been removed."""
    try:
        return os.getcwd()  # noqa: PTH109 - a text, as the kernel has it
    except FileNotFoundError:
        return ""


def _environment() -> dict[str, str]:
    """Returns our environment, with both packages importable even where they are not installed (a checkout)."""
    installed = {*site.getsitepackages(), site.getusersitepackages()}
    places: list[str] = []
    for package in ("enclaved", "ms_enclave"):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise DaemonStartFailed(
                f"the package {package!r} is not installed for {sys.executable}; install ms-enclave with pip, "
                "or set MS_ENCLAVE_ADDRESS to a daemon that runs elsewhere"
            )
        place = str(Path(spec.submodule_search_locations[0]).resolve().parent)
        if place not in installed and place not in places:
            places.append(place)
    inherited = [str(Path(place).absolute()) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    path = os.pathsep.join([*places, *inherited])
    # Its log is kept for the day it does not start, not for reading; one line for each execution would fill a disk.
    environment = {LOG_LEVEL_VARIABLE: "warning", **os.environ}
    return {**environment, "PYTHONPATH": path} if path else environment


def _socket(directory: Path) -> Path:
    return directory / "enclaved.sock"


def _http_socket(directory: Path) -> Path:
    return directory / "http.sock"


def _address(directory: Path) -> str:
    return f"unix:{_socket(directory)}"


def _wait_until_it_listens(process: subprocess.Popen[bytes], directory: Path) -> str:
    """Returns what went wrong, or nothing once it listens."""
    deadline = time.monotonic() + START_S
    while not _listens(directory):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"the embedded daemon ended with code {process.wait(_POLL_S)}"
        if time.monotonic() > deadline:
            return f"the embedded daemon did not answer within {START_S:g} seconds"
    return ""


def _listens(directory: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(_socket(directory)))
        except OSError:
            return False
    return True


def _log(directory: Path) -> Path:
    return directory / "daemon.log"


def _trim(log: Path) -> None:
    """Keeps the end of a log that has become long. The daemon appends, so it goes on after what is kept."""
    with contextlib.suppress(OSError), log.open("r+b") as file:
        if file.seek(0, os.SEEK_END) > LOG_BYTES_MAX:
            file.seek(-LOG_BYTES_KEPT, os.SEEK_END)
            kept = file.read(LOG_BYTES_KEPT)
            file.seek(0)
            file.truncate()
            file.write(kept)


def _last_words(directory: Path) -> str:
    try:
        with _log(directory).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES_SHOWN))
            return file.read(LOG_BYTES_SHOWN).decode("utf-8", "replace").strip() or "(it said nothing)"
    except OSError as error:
        return f"(its log cannot be read: {error})"
