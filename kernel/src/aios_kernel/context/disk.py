"""The disk below host memory: snapshots in files, written and read by a thread of their own."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from aios_kernel.engine.protocol import Grammar, Snapshot, SnapshotFiles
from aios_kernel.errors import SnapshotError

_RETRY_S = 30.0
"""After a write that failed nothing more is written for so long."""
_PATTERN = "*.safetensors"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """A snapshot in a file."""

    path: Path
    length: int
    pending: int
    nbytes: int


class DiskTier:
    """Files of snapshots below one folder, up to a budget; all of them go when it is closed.

    Driven by one thread, the dispatcher's. What touches the disk runs on a thread of the tier's own.

    Args:
        engine: one with `Capabilities.snapshot_files`.
        load_grammar: the codec's.
        folder: for the files; what an earlier life left there is removed.
        budget_bytes: what the files may take in all.
    """

    def __init__(
        self, engine: SnapshotFiles[Any], load_grammar: Callable[[str], Grammar], folder: Path, budget_bytes: int
    ) -> None:
        self._engine = engine
        self._load_grammar = load_grammar
        self._folder = folder
        self._budget = budget_bytes
        self._numbers = itertools.count(1)
        self._retry_s = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aios-kv-disk")
        self.used_bytes = 0
        self._thread.submit(self._prepare)

    def has_room(self, nbytes: int) -> bool:
        """Whether a snapshot of this size may be stored now."""
        return self.used_bytes + nbytes <= self._budget and time.monotonic() >= self._retry_s

    def store(self, snapshot: Snapshot) -> Future[Stored]:
        """Write a snapshot to a file; the caller tells `failed` or `cancelled` of a future that ended so."""
        path = self._folder / f"{next(self._numbers)}.safetensors"
        length = len(snapshot.tokens)
        stored = Stored(path, length, length - snapshot.computed, snapshot.nbytes)
        self.used_bytes += stored.nbytes
        return self._thread.submit(self._write, snapshot, stored)

    def cancelled(self, nbytes: int) -> None:
        """Book a write that was cancelled before it began: its room is free again."""
        self.used_bytes -= nbytes

    def failed(self, error: BaseException, nbytes: int) -> None:
        """Book a write that failed: its room is free again, and the disk is left alone for a while."""
        self.used_bytes -= nbytes
        self._retry_s = time.monotonic() + _RETRY_S
        _log.warning("snapshots stay in memory for %.0f s: %s", _RETRY_S, error)

    def fetch(self, stored: Stored) -> Future[Snapshot]:
        """Read a snapshot back; the file stays. The future raises SnapshotError."""
        return self._thread.submit(self._read, stored.path)

    def remove(self, stored: Stored) -> None:
        """Delete a file, after everything that was begun before."""
        self.used_bytes -= stored.nbytes
        with contextlib.suppress(RuntimeError):  # the tier is closed, and its files are gone
            self._thread.submit(stored.path.unlink, missing_ok=True)

    def close(self) -> None:
        """Delete all files, once what is under way has ended."""
        self._thread.shutdown(cancel_futures=True)
        self._clear()
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder.chmod(0o700)
        self._clear()

    def _clear(self) -> None:
        with contextlib.suppress(OSError):
            for path in [*self._folder.glob(_PATTERN), *self._folder.glob(f".{_PATTERN}.*")]:
                path.unlink(missing_ok=True)

    def _write(self, snapshot: Snapshot, stored: Stored) -> Stored:
        try:
            snapshot.save(stored.path)
        except OSError as error:
            raise SnapshotError(f"a snapshot cannot be written to {stored.path}: {error}") from error
        return stored

    def _read(self, path: Path) -> Snapshot:
        return cast("Snapshot", self._engine.load_snapshot(path, self._load_grammar))
