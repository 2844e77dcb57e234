"""The file systems of a sandbox that are memory: how large they are, so that programs still have some. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from enclaved.core.spec_fields import MIB
from enclaved.errors import FieldViolation, InvalidRequest
from enclaved.model import SandboxRequest

HEAP_RESERVE_BYTES = 48 * MIB
"""Memory that tmpfs may never take: the guest, its journal and one interpreter."""

WORKING_DIR_SIZE_BYTES = 128 * MIB
TMP_SIZE_BYTES = 64 * MIB
SHM_SIZE_BYTES = 16 * MIB

_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class TmpfsSizes:
    """How large the file systems of a sandbox are that are memory."""

    working_dir_bytes: int
    tmp_bytes: int
    shm_bytes: int


def tmpfs_sizes(
    request: SandboxRequest, memory_bytes: int, working_dir_default_bytes: int = 0, tmp_default_bytes: int = 0
) -> TmpfsSizes:
    """Sizes the working directory, /tmp and /dev/shm so that they and the reserve fit into the memory limit.

    They are memory: filled up, they would have programs killed. The defaults are for sizes that nobody asks for, as far
    as memory allows them; 0: 128 MiB and 64 MiB. Raises `InvalidRequest` where asked-for sizes do not
    fit.
    """
    budget = memory_bytes - HEAP_RESERVE_BYTES

    def default(most_bytes: int, share: int) -> int:
        # Shares of the memory limit in 32nds, of 13 in all; the budget counts only where memory is scarce.
        size = min(most_bytes, memory_bytes * share // 32, budget * share // 13)
        return size // _PAGE_BYTES * _PAGE_BYTES

    working_dir = request.working_dir_size_bytes or default(working_dir_default_bytes or WORKING_DIR_SIZE_BYTES, 8)
    tmp = request.tmp_size_bytes or default(tmp_default_bytes or TMP_SIZE_BYTES, 4)
    shm = default(SHM_SIZE_BYTES, 1)
    total = working_dir + tmp + shm + HEAP_RESERVE_BYTES
    if total > memory_bytes:
        asked = ("working_dir_size_bytes", "tmp_size_bytes")
        text = (
            f"these are memory: with /dev/shm ({shm}) and a reserve for programs ({HEAP_RESERVE_BYTES}) they need "
            f"{total} bytes, and the memory limit is {memory_bytes}; ask for less, or for more memory_limit_bytes"
        )
        raise InvalidRequest(
            *(FieldViolation(f"spec.{field}", text) for field in asked if getattr(request, field) is not None)
        )
    return TmpfsSizes(working_dir, tmp, shm)
