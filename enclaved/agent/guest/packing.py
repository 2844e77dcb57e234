"""Packing directories and files into tar archives."""

from __future__ import annotations

import errno
import os
import stat

from .paths import PathRefused, open_below, open_regular, tree
from .rows import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Sequence

    from .paths import Place


PIECE_BYTES = 256 * 1024


def read_archive(place: Place, job: Dict[str, Any]) -> None:
    """Writes an archive of a directory or a file to stdout."""
    pack(place, _Stdout(), job["gzip"], job.get("names", []))


def pack(place: Place, output: Any, gzip: bool, names: Sequence[str] = ()) -> None:
    """Writes an archive of a directory or a file. Pipes, sockets and devices are left out.

    ``names``: only these regular files, by their paths below the directory.
    """
    import tarfile

    found = place.stat()
    mode = "w|gz" if gzip else "w|"
    form: Dict[str, Any] = {"format": tarfile.GNU_FORMAT, "encoding": "utf-8", "errors": "surrogateescape"}
    sizes = {"bufsize": PIECE_BYTES, "copybufsize": PIECE_BYTES}
    # The type of ``mode`` is one of literals, and dictionaries have no types by key.
    with tarfile.open(mode=mode, fileobj=output, **sizes, **form) as archive:  # type: ignore[call-overload]
        if stat.S_ISREG(found.st_mode):
            _add(archive, place.folder, place.name, place.name, found)
        elif stat.S_ISDIR(found.st_mode) and names:
            _add_named(archive, place.open_folder(), names)
        elif stat.S_ISDIR(found.st_mode):
            for folder, path, info in tree(place.open_folder()):
                _add(archive, folder, path, os.path.basename(path), info)
                archive.members = []  # which would keep all of them
        else:
            raise PathRefused(errno.EINVAL, "neither a regular file nor a directory")


def _add_named(archive: Any, top: int, names: Sequence[str]) -> None:
    for path in names:
        above, _, name = path.rpartition("/")
        try:
            folder = open_below(top, above)
        except OSError:  # gone, or another thing since it was listed
            continue
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode):
                _add(archive, folder, path, name, found)
                archive.members = []
        except FileNotFoundError:
            continue
        finally:
            os.close(folder)


def _add(archive: Any, folder: int, path: str, name: str, found: os.stat_result) -> None:
    import tarfile

    member = tarfile.TarInfo(path)
    member.mode, member.mtime = stat.S_IMODE(found.st_mode) & 0o777, int(found.st_mtime)
    member.uid, member.gid = found.st_uid, found.st_gid
    if stat.S_ISDIR(found.st_mode):
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    elif stat.S_ISLNK(found.st_mode):
        member.type = tarfile.SYMTYPE
        try:
            member.linkname = os.readlink(name, dir_fd=folder)
        except OSError:  # gone or another thing since it was listed
            return
        archive.addfile(member)
    elif stat.S_ISREG(found.st_mode):
        try:
            fd = open_regular(folder, name)
        except FileNotFoundError:
            return
        with os.fdopen(fd, "rb") as file:
            member.size = os.fstat(fd).st_size
            archive.addfile(member, _Padded(file))


class _Stdout:
    """Standard output, with nothing buffered."""

    def write(self, data: bytes) -> int:
        write_all(1, data)
        return len(data)


class _Padded:
    """A file that has at least as many bytes as it is asked for, though its program may cut it meanwhile."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        data: bytes = self._file.read(size)
        return data.ljust(size, b"\0")
