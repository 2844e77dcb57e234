"""Unpacking tar archives while they arrive.

The archive is a stranger's. Names stay below the target, and no link is followed on the way; members, sizes and names
have bounds, and so has the memory that a packed one may take. What came before a member that is refused stays.
"""

from __future__ import annotations

import itertools
import json
import os
import posixpath
import stat

from .content import Draft, appear, copy_content, widen_stdin
from .expanding import HEADER_BYTES_MAX, UNPACKED_BYTES_MAX, Archive, ArchiveRefused
from .paths import DEPTH_MAX, FOLDER
from .rows import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional, Tuple

    from .paths import Place

MEMBERS_MAX = 100_000
NAME_BYTES_MAX = 4096
_BLOCK = 512


def write_archive(place: Place, job: Dict[str, Any]) -> None:
    """Unpacks stdin into a directory, which is made if it is missing."""
    widen_stdin()
    archive = Archive(0)
    found = members(archive)
    first = list(itertools.islice(found, 1))  # what cannot be read makes nothing
    place.make_parents()
    try:
        os.mkdir(place.name, 0o755, dir_fd=place.folder)
    except FileExistsError:
        pass
    unpacking = Unpacking(place.open_folder())
    unpacking.run(archive, itertools.chain(first, found))
    report = {"entries": unpacking.entries, "size_bytes": unpacking.size_bytes}
    write_all(1, json.dumps(report).encode())


class Member:
    """One entry of an archive, checked."""

    def __init__(self, header: Any, name: str, link: str, size: int) -> None:
        self.shown = ascii(name[:100])
        self.header, self.link = header, link
        self.names = _inner_names(name, self.shown)
        self.size = size if header.isreg() else 0
        self.is_directory, self.is_symlink, self.is_hard_link = header.isdir(), header.issym(), header.islnk()
        if header.type == b"S":
            raise ArchiveRefused("%s is a sparse file; pack it without --sparse" % self.shown)
        if not (header.isreg() or header.isdir() or header.issym() or header.islnk()):
            raise ArchiveRefused("%s is a device, a pipe or another special file; leave it out" % self.shown)
        if not self.is_directory and (not self.names or name.endswith("/")):
            raise ArchiveRefused("%s is no name of a file" % self.shown)
        if self.is_symlink:
            self._check_link()
        # The owner may read and write, nobody else may write, and nothing runs with other rights.
        executable = 0o111 if header.mode & 0o100 else 0
        self.mode = (header.mode & (0o644 | executable)) | 0o600
        self.mtime = float(header.mtime) if 0 <= header.mtime < 2**33 else 0.0

    def _check_link(self) -> None:
        """A link may go up only at its beginning, and no further than to the target directory."""
        names = [name for name in self.link.split("/") if name not in ("", ".")]
        ups = 0
        while ups < len(names) and names[ups] == "..":
            ups += 1
        if self.link.startswith("/") or ups > len(self.names) - 1 or ".." in names[ups:]:
            raise ArchiveRefused("%s is a link that leads out of the archive" % self.shown)
        if not self.link or "\0" in self.link or len(os.fsencode(self.link)) > NAME_BYTES_MAX:
            raise ArchiveRefused("%s is a link to something that cannot be a path" % self.shown)


def _inner_names(name: str, shown: str) -> List[str]:
    if len(os.fsencode(name)) > NAME_BYTES_MAX or "\0" in name:
        raise ArchiveRefused("%s cannot be a name" % shown)
    normal = posixpath.normpath(name.lstrip("/") or ".")
    names = [] if normal == "." else normal.split("/")
    if names[:1] == [".."]:
        raise ArchiveRefused("%s leads out of the target directory" % shown)
    if len(names) > DEPTH_MAX:
        raise ArchiveRefused("%s lies more than %d directories deep" % (shown, DEPTH_MAX))
    return names


class Unpacking:
    """What has been unpacked into a directory."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._above: List[str] = []
        self._folder = os.dup(top)
        self.entries = self.size_bytes = 0

    def run(self, archive: Archive, found: Iterator[Member]) -> None:
        """Unpacks all of its members."""
        for member in found:
            self.entries += 1
            if self.entries > MEMBERS_MAX:
                raise ArchiveRefused("has more than %d members" % MEMBERS_MAX)
            self._count(member.size)
            if member.is_directory:
                self._enter(member.names)
                continue
            self._enter(member.names[:-1])
            if member.is_symlink:
                self._link(member.names[-1], member.link)
            elif member.is_hard_link:
                self._copy(member)
            else:
                with Draft(self._folder) as draft:
                    for piece in archive.pieces(member.size):
                        draft.write(piece)
                    draft.appear(member.names[-1], member.mode, member.mtime)
                archive.skip(-member.size % _BLOCK)
        archive.drain()

    def _count(self, size: int) -> None:
        self.size_bytes += size
        if size < 0 or self.size_bytes > UNPACKED_BYTES_MAX:
            raise ArchiveRefused("unpacks to more than %d bytes" % UNPACKED_BYTES_MAX)

    def _enter(self, names: List[str]) -> None:
        """Goes to a directory below the top, and makes what is missing on the way. No link is followed."""
        if names != self._above:
            os.close(self._folder)
            self._folder, self._above = self._opened(names, make=True), names

    def _opened(self, names: List[str], make: bool) -> int:
        folder = os.dup(self._top)
        for name in names:
            try:
                inner = os.open(name, FOLDER | os.O_RDONLY, dir_fd=folder)
            except FileNotFoundError:
                if not make:
                    raise
                os.mkdir(name, 0o755, dir_fd=folder)
                inner = os.open(name, FOLDER | os.O_RDONLY, dir_fd=folder)
            except OSError:
                if _is_link(name, folder):
                    raise ArchiveRefused("%s is a link; nothing is unpacked through it" % ascii(name)) from None
                raise
            os.close(folder)
            folder = inner
        return folder

    def _link(self, name: str, target: str) -> None:
        appear(lambda new: os.symlink(target, new, dir_fd=self._folder), self._folder, name)

    def _copy(self, member: Member) -> None:
        """A hard link becomes a copy of what was unpacked under the other name."""
        names = _inner_names(member.link, ascii(member.link[:100]))
        missing = "%s links to nothing that is a file in the archive" % member.shown
        if not names:
            raise ArchiveRefused(missing)
        try:
            folder = self._opened(names[:-1], make=False)
            found = os.stat(names[-1], dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            raise ArchiveRefused(missing) from None
        if not stat.S_ISREG(found.st_mode):  # nor a link: elsewhere it would lead elsewhere
            raise ArchiveRefused(missing)
        self._count(found.st_size)
        copy_content(folder, names[-1], self._folder, member.names[-1])
        os.close(folder)


def _is_link(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def members(archive: Archive) -> Iterator[Member]:
    """Reads headers. Whoever takes a file reads its content, and the padding, before it asks for the next."""
    import tarfile

    extended = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
    texts = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
    known: Dict[str, str] = {}
    first = True
    for _ in range(4 * MEMBERS_MAX):
        block = archive.read(_BLOCK, may_end=True)
        if not block.strip(b"\0"):
            if first and not block:
                raise ArchiveRefused("cannot be read: it is empty")
            return
        first = False
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise archive.malformed(str(error)) from None
        if header.size < 0:
            raise archive.malformed("a member has a negative size")
        if header.type in extended + texts + (tarfile.XGLTYPE,):
            if header.size > HEADER_BYTES_MAX:
                raise archive.malformed("a header has more than %d bytes" % HEADER_BYTES_MAX)
            data = archive.read(header.size)
            archive.skip(-header.size % _BLOCK)
            if header.type in extended:
                known.update(_records(archive, data))
            elif header.type in texts:
                key = "path" if header.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
                known[key] = os.fsdecode(data.split(b"\0", 1)[0])
            continue
        size = _number(archive, known.get("size"), header.size)
        header.mtime = _number(archive, known.get("mtime", "").partition(".")[0] or None, int(header.mtime))
        member = Member(header, known.get("path", header.name), known.get("linkpath", header.linkname), size)
        known = {}
        yield member
    raise ArchiveRefused("has more than %d headers" % (4 * MEMBERS_MAX))


def _records(archive: Archive, data: bytes) -> Iterator[Tuple[str, str]]:
    """Reads the records of an extended header: ``LENGTH KEY=VALUE`` and a line break each."""
    while data.strip(b"\0"):
        digits, space, _ = data[:20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record, data = data[len(digits) + 1 : length], data[length:]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise archive.malformed("an extended header is damaged")
        if key.startswith(b"GNU.sparse"):
            raise ArchiveRefused("holds a sparse file; pack it without --sparse")
        if key in (b"path", b"linkpath", b"size", b"mtime"):
            yield key.decode(), os.fsdecode(value[:-1])


def _number(archive: Archive, text: Optional[str], otherwise: int) -> int:
    if text is None:
        return otherwise
    digits = text[1:] if text.startswith("-") else text
    if not (digits.isdigit() and len(digits) < 19 and digits.isascii()):
        raise archive.malformed("a number is none")
    return int(text)
