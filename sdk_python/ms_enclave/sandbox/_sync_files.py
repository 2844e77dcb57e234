"""Files with methods that block."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator

from ms_enclave._model.files import FileChange
from ms_enclave.sandbox import files
from ms_enclave.sandbox._blocking import Blocking
from ms_enclave.sandbox._portal import process_portal


class Files:
    """The files of one sandbox; see `ms_enclave.sandbox.files.Files`."""

    def __init__(self, wrapped: files.Files) -> None:
        self.wrapped = wrapped

    read = Blocking(files.Files.read)
    write = Blocking(files.Files.write)
    upload = Blocking(files.Files.upload)
    download = Blocking(files.Files.download)
    stat = Blocking(files.Files.stat)
    exists = Blocking(files.Files.exists)
    list = Blocking(files.Files.list)
    make_directory = Blocking(files.Files.make_directory)
    move = Blocking(files.Files.move)
    copy = Blocking(files.Files.copy)
    remove = Blocking(files.Files.remove)
    search = Blocking(files.Files.search)
    put_dir = Blocking(files.Files.put_dir)
    get_dir = Blocking(files.Files.get_dir)
    put_archive = Blocking(files.Files.put_archive)
    get_archive = Blocking(files.Files.get_archive)

    @contextlib.contextmanager
    def watch(self, path: str = ".", *, recursive: bool = False) -> Iterator[Iterator[FileChange]]:
        """Watches a directory; see `ms_enclave.sandbox.files.Files.watch`."""
        portal = process_portal()
        watching = self.wrapped.watch(path, recursive=recursive)
        changes = portal.run(watching.__aenter__())
        try:
            yield _each(changes)
        finally:
            portal.run(watching.__aexit__(None, None, None))


def _each(changes: AsyncGenerator[FileChange, None]) -> Iterator[FileChange]:
    portal = process_portal()
    while True:
        try:
            yield portal.run(anext(changes))
        except StopAsyncIteration:
            return
