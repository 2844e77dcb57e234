"""Archives, and directories of this machine into which the guest's own code unpacks them."""

from __future__ import annotations

import errno
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from enclaved.agent.guest.expanding import Archive
from enclaved.agent.guest.unpacking import Unpacking, members


@contextmanager
def closing() -> Iterator[None]:
    """Closes what the block leaves open: the guest's own code runs in processes that end when it is done."""
    before = set(os.listdir("/proc/self/fd"))
    try:
        yield
    finally:
        for fd in set(os.listdir("/proc/self/fd")) - before:
            with suppress(OSError):  # that of the listing
                os.close(int(fd))


@contextmanager
def directory() -> Iterator[Path]:
    """A directory with a target in it, and something outside the target that must stay as it is."""
    with closing(), tempfile.TemporaryDirectory(dir="/tmp") as folder:
        (Path(folder) / "target").mkdir()
        (Path(folder) / "outside").write_bytes(b"kept")
        yield Path(folder)


def unpack(archive: bytes, folder: Path) -> Unpacking:
    fd = os.open(folder / "target", os.O_RDONLY)
    with tempfile.TemporaryFile() as file:
        file.write(archive)
        file.seek(0)
        found = Unpacking(fd)
        try:
            source = Archive(file.fileno())
            found.run(source, members(source))
        finally:
            os.close(fd)
    return found


def member(name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.type, found.linkname, found.mtime = len(content), kind, link, 1000
    return found


def packed(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def leads_in_circles(link: Path) -> bool:
    try:
        link.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def check_outside(folder: Path) -> None:
    """Nothing was written but below the target, and no link there leads out of it."""
    assert sorted(path.name for path in folder.iterdir()) == ["outside", "target"]
    assert (folder / "outside").read_bytes() == b"kept"
    top = (folder / "target").resolve()
    for path in top.rglob("*"):
        assert not path.is_symlink() or leads_in_circles(path) or os.path.realpath(path).startswith(str(top))
        assert path.is_file() or path.is_dir() or path.is_symlink()
