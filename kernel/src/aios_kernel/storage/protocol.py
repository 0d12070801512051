"""What every storage backend promises; `kernel/tests/storage` holds the suite that checks it."""

from __future__ import annotations

from typing import Final, Protocol

from aios_kernel._names import check_text, shown, split_name
from aios_kernel.errors import InvalidRequest, NotFound, QuotaExceeded
from aios_kernel.syscalls import MAX_FRAME_BYTES, FileData, FileInfo

MAX_FILE_BYTES: Final = MAX_FRAME_BYTES - 64 * 1024
"""The largest file: with its path and its envelope it still fits a frame."""


class Storage(Protocol):
    """Files with all their versions, per principal and owner (`agent/<name>` or `group/<name>`).

    What a call wrote survives the death of the process and of the machine once the call has returned. Versions of a
    file count from 1 without gaps. Two owners never see each other's files, whatever their names are. Every method may
    raise `InvalidRequest` for a path that breaks the rules (`check_path`), and `InternalError` when the disk refuses.
    """

    async def put(self, principal: str, owner: str, path: str, data: bytes) -> FileInfo:
        """Write a new version; `InvalidRequest` above `MAX_FILE_BYTES`, `QuotaExceeded` beyond the owner's quota."""
        ...

    async def get(self, principal: str, owner: str, path: str, version: int | None = None) -> FileData:
        """Read a version, the newest by default; `NotFound` if there is none."""
        ...

    async def list(self, principal: str, owner: str, prefix: str = "") -> list[FileInfo]:
        """The newest version of every file whose path starts with `prefix`, by path."""
        ...

    async def versions(self, principal: str, owner: str, path: str) -> list[FileInfo]:
        """All versions of a file, newest first; `NotFound` if there is none."""
        ...

    async def rollback(self, principal: str, owner: str, path: str, version: int) -> FileInfo:
        """Write an old version again as the newest; `NotFound` if there is no such version, errors as of `put`."""
        ...

    async def usage(self, principal: str, owner: str) -> int:
        """Bytes that an owner's files have, all versions together."""
        ...

    async def delete(self, principal: str, owner: str, path: str) -> int:
        """Delete the file and every file below `path/`, all versions; the number of files, 0 if there were none."""
        ...

    async def close(self) -> None:
        """Finish what was asked and let go of the backend."""
        ...


def check_path(path: str) -> str:
    """Return a file's path if it is relative, normal and printable; raise `InvalidRequest` otherwise."""
    split_name(path, "path")
    return path


def check_prefix(prefix: str) -> str:
    """Return the beginning of a path if it could be one; raise `InvalidRequest` otherwise."""
    return check_text(prefix, "prefix")


def check_data(path: str, data: bytes) -> bytes:
    """Return a file's bytes if they are not too many; raise `InvalidRequest` otherwise."""
    if len(data) > MAX_FILE_BYTES:
        raise InvalidRequest(
            f"{shown(path)} has {len(data):,} bytes; a file holds at most {MAX_FILE_BYTES:,}", fix="split the file"
        )
    return data


def check_quota(owner: str, path: str, used: int, quota: int) -> None:
    """Refuse a write after which an owner would use more than its quota (0: it has none)."""
    if quota and used > quota:
        raise QuotaExceeded(
            f"with {shown(path)} the files of {owner} would have {used:,} bytes; they may have {quota:,}",
            fix="delete files that are not needed (their versions count too), or raise storage_quota_bytes",
        )


def no_file(owner: str, path: str, version: int | None = None) -> NotFound:
    """The error for a file or a version that is not there."""
    which = shown(path) if version is None else f"version {version} of {shown(path)}"
    return NotFound(f"{owner} has no {which}", fix="storage.list and storage.versions show what there is")


def after(prefix: str) -> str | None:
    """The smallest text that sorts after every text that starts with `prefix`; None if there is none.

    In the order of code points, which is that of UTF-8 bytes.
    """
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return None
    last = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if last == 0xD800 else last)
