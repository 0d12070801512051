"""SQLite's files with failpoints in them (`memory.db.write`, `memory.db-wal.sync`, ...), for kernels under test."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import Any, Final

import apsw

from aios_kernel.failpoints import Fault, happen, plan

NAME: Final = "failpoints"


class _File(apsw.VFSFile):
    """A file of a database; its writes and syncs may fail, and the process may die in the middle of them."""

    def __init__(self, filename: Any, flags: list[int]) -> None:
        super().__init__("", filename, flags)
        self._name = PurePath(filename.filename() if isinstance(filename, apsw.URIFilename) else str(filename)).name

    def xWrite(self, data: bytes, offset: int) -> None:
        """Write, or half of it."""
        fault = _due(f"{self._name}.write")
        if fault is not None:
            if fault.action == "tear":
                super().xWrite(data[: len(data) // 2], offset)
            _fail(f"{self._name}.write", fault, apsw.SQLITE_IOERR_WRITE)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        """Bring it to the disk, or not."""
        fault = _due(f"{self._name}.sync")
        if fault is not None:
            _fail(f"{self._name}.sync", fault, apsw.SQLITE_IOERR_FSYNC)
        super().xSync(flags)


class _Files(apsw.VFS):
    def __init__(self) -> None:
        super().__init__(NAME, "")

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        """Open a file of a database."""
        return _File(name, flags)


def _due(name: str) -> Fault | None:
    return plan.at(name) if plan is not None else None


def _fail(name: str, fault: Fault, code: int) -> None:
    """Let it happen, in the terms in which SQLite hears of the system's errors."""
    try:
        happen(name, fault)
    except OSError as error:
        if fault.action == "ENOSPC":
            raise apsw.FullError(os.strerror(error.errno or 0)) from error
        failed: Any = apsw.IOError(os.strerror(error.errno or 0))
        failed.extendedresult = code
        raise failed from error


files: Final = _Files()
"""Registers the name for as long as it lives."""
