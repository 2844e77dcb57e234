"""What the documented HTTP routes do with files: they unpack archives, and nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import IO, Final

from ms_enclave._model.files import FileChange, FileInfo, SearchResult
from ms_enclave.errors import NotServed

SPOOL_BYTES: Final = 1024 * 1024
"""How much of an archive is kept in memory while its size is found out; a larger one goes to the disk."""

Send = Callable[[str, str, IO[bytes], int], Awaitable[None]]


def no_files() -> NotServed:
    """Makes the error for everything but putting files there."""
    return NotServed(
        "the HTTP routes carry files into a sandbox and do nothing else with them; run file_operation or "
        "shell_executor for the rest, or use LocalSandboxManager with the address of a daemon"
    )


class HttpFiles:
    """Files over HTTP: all but archives that go in raises `NotServed`."""

    def __init__(self, send: Send) -> None:
        """``send`` takes the sandbox, the target directory, an archive and its size."""
        self._send = send

    async def write_archive(
        self, sandbox_id: str, path: str, content: Callable[[], AsyncIterator[bytes]]
    ) -> tuple[int, int]:
        """Unpacks an archive. The routes do not say what became of it: 0 entries, 0 bytes."""
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
            async for data in content():
                spool.write(data)
            await self._send(sandbox_id, path, spool, spool.tell())
        return 0, 0

    async def stat(self, sandbox_id: str, path: str) -> FileInfo:
        raise no_files()

    async def list(
        self, sandbox_id: str, path: str, *, recursive: bool = False, glob: str = ""
    ) -> AsyncGenerator[FileInfo, None]:
        raise no_files()
        yield  # makes it a generator, which the Protocol asks for

    async def make_directory(self, sandbox_id: str, path: str, *, mode: int, create_parents: bool) -> None:
        raise no_files()

    async def move(self, sandbox_id: str, path: str, target_path: str, *, replace: bool) -> None:
        raise no_files()

    async def copy(self, sandbox_id: str, path: str, target_path: str, *, replace: bool, recursive: bool) -> None:
        raise no_files()

    async def remove(self, sandbox_id: str, path: str, *, recursive: bool, missing_ok: bool) -> None:
        raise no_files()

    async def watch(
        self, sandbox_id: str, path: str, *, recursive: bool = False
    ) -> AsyncGenerator[FileChange | None, None]:
        raise no_files()
        yield None

    async def search(
        self,
        sandbox_id: str,
        path: str,
        pattern: str,
        *,
        literal: bool,
        ignore_case: bool,
        glob: str,
        matches_max: int,
    ) -> SearchResult:
        raise no_files()

    async def read(
        self, sandbox_id: str, path: str, *, offset: int = 0, length: int = 0, seen: FileInfo | None = None
    ) -> AsyncGenerator[bytes, None]:
        raise no_files()
        yield b""

    async def upload(
        self,
        sandbox_id: str,
        path: str,
        content: Callable[[int], AsyncIterator[bytes]],
        *,
        mode: int,
        upload_id: str,
    ) -> int:
        raise no_files()

    async def read_archive(
        self, sandbox_id: str, path: str, *, gzip: bool = False, names: Sequence[str] = ()
    ) -> AsyncGenerator[bytes, None]:
        raise no_files()
        yield b""
