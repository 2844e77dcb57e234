"""Files onto the wire."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from ms_enclave.v1 import file_service_pb2 as pb

from enclaved.model import ChangeKind, FileChange, FileInfo, FileType, SearchMatch

_TYPES: Final = {
    FileType.REGULAR: pb.FILE_TYPE_REGULAR,
    FileType.DIRECTORY: pb.FILE_TYPE_DIRECTORY,
    FileType.SYMLINK: pb.FILE_TYPE_SYMLINK,
    FileType.OTHER: pb.FILE_TYPE_OTHER,
}
_CHANGES: Final = {
    ChangeKind.READY: pb.WatchDirectoryResponse.CHANGE_READY,
    ChangeKind.CREATED: pb.WatchDirectoryResponse.CHANGE_CREATED,
    ChangeKind.MODIFIED: pb.WatchDirectoryResponse.CHANGE_MODIFIED,
    ChangeKind.REMOVED: pb.WatchDirectoryResponse.CHANGE_REMOVED,
    ChangeKind.ATTRIBUTES: pb.WatchDirectoryResponse.CHANGE_ATTRIBUTES,
    ChangeKind.OVERFLOW: pb.WatchDirectoryResponse.CHANGE_OVERFLOW,
    ChangeKind.GONE: pb.WatchDirectoryResponse.CHANGE_GONE,
}
_TIME_MIN_NS: Final = -62_135_596_800 * 10**9
_TIME_MAX_NS: Final = 253_402_300_799 * 10**9


def file_info(info: FileInfo) -> pb.FileInfo:
    """Shows a file, directory or link. A time that no message can carry is shown as the nearest that one can."""
    modified = Timestamp()
    modified.FromNanoseconds(max(_TIME_MIN_NS, min(_TIME_MAX_NS, info.modified_ns)))
    return pb.FileInfo(
        path=info.path,
        type=_TYPES[info.type],
        size_bytes=info.size_bytes,
        mode=info.mode,
        modify_time=modified,
        uid=info.uid,
        link_target=info.link_target,
    )


def file_change(change: FileChange) -> pb.WatchDirectoryResponse:
    """Shows a change."""
    return pb.WatchDirectoryResponse(change=_CHANGES[change.kind], path=change.path, is_directory=change.is_directory)


def search_matches(matches: Iterable[SearchMatch | None]) -> pb.SearchFilesResponse:
    """Shows some matches; ``None`` says that there are more than were asked for."""
    found = list(matches)
    return pb.SearchFilesResponse(
        matches=[pb.SearchMatch(path=each.path, line=each.line, text=each.text) for each in found if each is not None],
        truncated=None in found,
    )
