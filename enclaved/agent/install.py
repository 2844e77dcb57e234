"""Puts on the host what every sandbox mounts read-only: the guest, and passwd, group and hosts."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from enclaved.runtime.base import HOST_NAME

USER_NAME = "sandbox"
PYTHON_TOO_OLD = 78
"""Exit code of a guest whose interpreter it does not support."""
ARGUMENT_BYTES = 100_000
"""What one argument of the guest takes at most; Linux allows 128 KiB."""

_NO_HOSTS: Mapping[str, str] = MappingProxyType({})
_HEAD = f"""# The guest, PID 1 of a sandbox: the modules of enclaved/agent/guest in one file. See `loader` in it.

import sys

if sys.version_info < (3, 8):
    sys.stderr.write("guest: Python 3.8 or newer is needed, and this is %s" % sys.version.split()[0])
    sys.exit({PYTHON_TOO_OLD})
try:
    import _ctypes
except ImportError:
    sys.stderr.write("guest: this Python has no ctypes, without which no program can be confined")
    sys.exit({PYTHON_TOO_OLD})
SOURCES = {{}}
"""
_TAIL = """
LOADER = {"__name__": "loader"}
exec(compile(SOURCES["loader"], __file__ + "/loader.py", "exec"), LOADER)
LOADER["become_lean"](SOURCES, __file__, sys.argv[1:])
"""


def bundled_guest() -> bytes:
    """Makes the one file of which a sandbox runs the guest: the same bytes for the same sources, readable as they are.

    Raises ValueError for a source with three single quotes in a row, which cannot be quoted.
    """
    parts = [_HEAD]
    for module in sorted(resources.files("enclaved.agent.guest").iterdir(), key=lambda module: module.name):
        name, _, suffix = module.name.rpartition(".")
        if suffix == "py":
            source = module.read_text(encoding="utf-8")
            if "'''" in source or not source.endswith("\n"):
                raise ValueError(f"{module.name} cannot be quoted")
            parts.append(f"\nSOURCES[{name!r}] = r'''{source}'''\n")
    return "".join([*parts, _TAIL]).encode()


def packed_guest(source: bytes | None = None) -> tuple[str, ...]:
    """Makes the arguments in which the guest comes to a sandbox that cannot mount it: see `attached_guest_argv`.

    ``source`` replaces it, for tests.
    """
    text = base64.b85encode(zlib.compress(bundled_guest() if source is None else source, 9)).decode()
    return tuple(text[start : start + ARGUMENT_BYTES] for start in range(0, len(text), ARGUMENT_BYTES))


def install_guest(directory: Path) -> Path:
    """Writes the guest into a directory, under a name made of its content; returns the path.

    Guests of an older daemon keep running from their own file. The file is 0444 in a 0755 directory, so that any
    uid may read it and nobody in a sandbox may change it.
    """
    source = bundled_guest()
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    directory.chmod(0o755)
    for draft in directory.glob(".guest-*"):  # of a daemon that was killed: one at a time has this directory
        draft.unlink(missing_ok=True)
    path = directory / f"guest-{hashlib.sha256(source).hexdigest()[:16]}.py"
    if not path.exists():
        temporary = directory / f".{path.name}.{os.getpid()}"
        try:
            temporary.write_bytes(source)
            temporary.chmod(0o444)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)  # half of it is of no use, and takes the room that is missing
            raise
    return path


def write_accounts(
    directory: Path,
    uid: int,
    working_dir: str,
    *,
    gid: int = 0,
    extra_hosts: Mapping[str, str] = _NO_HOSTS,
    resolvers: Sequence[str] | None = None,
) -> None:
    """Writes ``passwd``, ``group`` and ``hosts`` for one sandbox: root, nobody, the user of programs, and itself.

    ``gid`` is the group of that user; 0: the same number. ``extra_hosts`` are further names with their addresses,
    ``resolvers`` the name servers for ``resolv.conf``; ``None`` makes no such file.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    directory.chmod(0o755)
    passwd = [
        "root:x:0:0:root:/root:/bin/sh",
        f"{USER_NAME}:x:{uid}:{gid or uid}:{USER_NAME}:{working_dir}:/bin/sh",
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin",
    ]
    group = ["root:x:0:", f"{USER_NAME}:x:{gid or uid}:", "nogroup:x:65534:"]
    hosts = [f"127.0.0.1 localhost {HOST_NAME}", "::1 localhost ip6-localhost ip6-loopback"]
    hosts += [f"{address} {name}" for name, address in extra_hosts.items()]
    files = {"passwd": passwd, "group": group, "hosts": hosts}
    if resolvers is not None:
        files["resolv.conf"] = [f"nameserver {address}" for address in resolvers]
    for name, lines in files.items():
        path = directory / name
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o444)
