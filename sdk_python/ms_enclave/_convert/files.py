"""Files from the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from ms_enclave._convert.texts import moment
from ms_enclave._model.files import ChangeKind, FileChange, FileInfo, FileType, SearchMatch
from ms_enclave.v1 import file_service_pb2 as pb

_TYPES: Final = {
    pb.FILE_TYPE_REGULAR: FileType.REGULAR,
    pb.FILE_TYPE_DIRECTORY: FileType.DIRECTORY,
    pb.FILE_TYPE_SYMLINK: FileType.SYMLINK,
}
_CHANGES: Final = {
    pb.WatchDirectoryResponse.CHANGE_CREATED: ChangeKind.CREATED,
    pb.WatchDirectoryResponse.CHANGE_MODIFIED: ChangeKind.MODIFIED,
    pb.WatchDirectoryResponse.CHANGE_REMOVED: ChangeKind.REMOVED,
    pb.WatchDirectoryResponse.CHANGE_ATTRIBUTES: ChangeKind.ATTRIBUTES,
    pb.WatchDirectoryResponse.CHANGE_OVERFLOW: ChangeKind.OVERFLOW,
    pb.WatchDirectoryResponse.CHANGE_GONE: ChangeKind.GONE,
}


def file_info(info: pb.FileInfo) -> FileInfo:
    """Reads a file, directory or link."""
    modified = moment(info.modify_time)
    return FileInfo(
        path=info.path,
        type=_TYPES.get(info.type, FileType.OTHER),
        size_bytes=info.size_bytes,
        mode=info.mode,
        modified_at=_local(modified),
        uid=info.uid,
        link_target=info.link_target,
    )


def file_change(change: pb.WatchDirectoryResponse) -> FileChange | None:
    """Reads a change; ``None`` for one that says nothing to the caller."""
    kind = _CHANGES.get(change.change)
    return None if kind is None else FileChange(kind, change.path, change.is_directory)


def search_match(match: pb.SearchMatch) -> SearchMatch:
    """Reads a line that matches."""
    return SearchMatch(match.path, match.line, match.text)


def _local(moment: datetime) -> datetime:
    try:
        return moment.astimezone()
    except (OverflowError, ValueError):  # at an end of the calendar
        return moment
