"""A database with one writer thread that commits in groups, and one reader thread that never waits for a disk sync."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar, final

import apsw

from aios_kernel._batch import BatchThread
from aios_kernel._sqlite import Synchronous, Upgrade, connect, migrate, reserve_log, transaction, typed_error
from aios_kernel.errors import AiosError, Cancelled, InternalError
from aios_kernel.failpoints import failpoint

T = TypeVar("T")
Job: TypeAlias = Callable[[apsw.Connection], T]

_log = logging.getLogger(__name__)


@final
class _Write(Generic[T]):
    """A queued write and what became of it."""

    __slots__ = ("committed", "error", "future", "job", "result", "waiter")

    def __init__(self, job: Job[T], committed: Callable[[T], None] | None) -> None:
        self.job = job
        self.committed = committed
        self.future: Future[T] = Future()
        self.waiter: asyncio.Future[T] | None = None
        self.result: Any = None
        self.error: BaseException | None = None

    def follow_up(self) -> None:
        """After the commit, before the answer."""
        try:
            if self.error is None and self.committed is not None:
                self.committed(self.result)
        except Exception:  # noqa: BLE001 - the write is durable; its caller and its neighbours must hear so
            _log.exception("the follow-up of a committed write failed")

    def answer(self) -> None:
        """Tell the caller; the one who waits on an event loop must be told there."""
        future = self.future if self.waiter is None else self.waiter
        if future.done():  # whoever waited has gone
            return
        if self.error is not None:
            future.set_exception(self.error)
        else:
            future.set_result(self.result)


@final
class GroupWriter:
    """Runs writes on one thread; all that queue up while a commit runs share the next one.

    A write that fails is undone alone (a savepoint each). A write is answered after its commit, never before.
    """

    def __init__(self, db: apsw.Connection, path: Path, *, name: str) -> None:
        self._db = db
        self._path = path
        self._name = name
        self._thread: BatchThread[_Write[Any]] = BatchThread(self._commit, name=f"aios-{name}-writer")

    async def run(
        self, job: Job[T], *, committed: Callable[[T], None] | None = None, after: Future[Any] | None = None
    ) -> T:
        """Run `job` in a transaction; returns its result once that is durable.

        Args:
            job: called on the writer thread with the connection; may raise an `AiosError`, which undoes it.
            committed: called on the writer thread between the commit and the answer, even if the caller has gone.
            after: what the job needs; it is queued when that is done, by whoever has done it, and fails as that does.
        """
        write, loop = _Write(job, committed), asyncio.get_running_loop()
        write.waiter = loop.create_future()
        self._enqueue(write, after)
        try:
            return await write.waiter
        except asyncio.CancelledError:
            write.future.cancel()  # unless it has begun
            raise

    def submit(
        self, job: Job[T], *, committed: Callable[[T], None] | None = None, after: Future[Any] | None = None
    ) -> Future[T]:
        """`run` for callers without an event loop."""
        write = _Write(job, committed)
        self._enqueue(write, after)
        return write.future

    def _enqueue(self, write: _Write[Any], after: Future[Any] | None) -> None:
        if after is None:
            self._thread.put(write)
        else:
            after.add_done_callback(lambda done: self._follow(write, done))

    def _follow(self, write: _Write[Any], done: Future[Any]) -> None:
        error = Cancelled("what the write waits for was cancelled") if done.cancelled() else done.exception()
        try:
            if error is None:
                self._thread.put(write)
        except AiosError as closed:
            error = closed
        if error is not None and write.future.set_running_or_notify_cancel():
            write.error = error
            _answer([write])

    def close(self) -> None:
        """Commit what is queued and close the connection; blocks."""
        self._thread.close()
        self._db.close(True)

    def _commit(self, batch: list[_Write[Any]]) -> None:
        writes = [write for write in batch if write.future.set_running_or_notify_cancel()]
        if not writes:
            return
        try:
            self._transaction(writes)
        except Exception as error:  # noqa: BLE001 - whatever it was, everybody who waits must hear of it
            for write in writes:
                write.error = write.error or typed_error(error, self._path)
        for write in writes:
            write.follow_up()
        _answer(writes)

    def _transaction(self, writes: list[_Write[Any]]) -> None:
        with transaction(self._db):
            for write in writes:
                self._one(write)
            failpoint(f"{self._name}.before_commit")
        failpoint(f"{self._name}.after_commit")

    def _one(self, write: _Write[Any]) -> None:
        self._db.execute("SAVEPOINT one")
        try:
            write.result = write.job(self._db)
        except AiosError as error:
            write.error = error
        except apsw.Error as error:
            if not self._db.in_transaction:  # SQLite undid the whole group (disk full, I/O error)
                raise
            write.error = typed_error(error, self._path)
        except Exception as error:  # noqa: BLE001 - whatever one write does wrong must not hurt its neighbours
            _log.exception("a write to %s failed", self._path)
            write.error = InternalError(f"a write to {self._path.name} failed: {error!r}")
        if write.error is not None:
            self._db.execute("ROLLBACK TO one")
        self._db.execute("RELEASE one")


def _answer(writes: Iterable[_Write[Any]]) -> None:
    """Answer writes, those who wait on one event loop together: waking it for each would make both threads wait."""
    waiting: dict[asyncio.AbstractEventLoop, list[_Write[Any]]] = {}
    for write in writes:
        if write.waiter is None:
            write.answer()
        else:
            waiting.setdefault(write.waiter.get_loop(), []).append(write)
    for loop, some in waiting.items():
        try:
            loop.call_soon_threadsafe(_answer_here, some)
        except RuntimeError:  # the loop was closed, and nobody waits there
            _log.debug("%d writes were not waited for", len(some))


def _answer_here(writes: Iterable[_Write[Any]]) -> None:
    for write in writes:
        write.answer()


@final
class Reader:
    """Runs reads on one thread and one connection, each in a transaction of its own: a consistent view."""

    def __init__(self, path: Path, *, name: str) -> None:
        self._path = path
        self._db = connect(path, read_only=True)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"aios-{name}-reader")

    async def run(self, job: Job[T]) -> T:
        """Run `job` on the reader thread and return its result."""
        return await asyncio.wrap_future(self.submit(job))

    def submit(self, job: Job[T]) -> Future[T]:
        """`run` for callers without an event loop."""
        try:
            return self._executor.submit(self.view, job)
        except RuntimeError as error:  # the executor was shut down
            raise Cancelled("the kernel is shutting down", fix="aios serve") from error

    def view(self, job: Job[T]) -> T:
        """Run `job` on this thread; not while another thread uses this reader."""
        try:
            self._db.execute("BEGIN")
            try:
                return job(self._db)
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        except apsw.Error as error:
            raise typed_error(error, self._path) from error

    def close(self) -> None:
        """Finish what is queued and close the connection; blocks."""
        self._executor.shutdown(wait=True)
        self._db.close(True)


@final
class Database:
    """One database file of one manager.

    Args:
        path: the file.
        schema: SQL that creates the tables.
        version: the schema's version; see `migrate`.
        upgrades: see `migrate`.
        synchronous: see `connect`.
        busy: commits are many, and somebody waits for each: the log gets its size at once (see `reserve_log`).
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        version: int,
        upgrades: Mapping[int, Upgrade] | None = None,
        *,
        synchronous: Synchronous = "FULL",
        busy: bool = False,
    ) -> None:
        db = connect(path, synchronous=synchronous)
        try:
            migrate(db, path, schema, version, upgrades)
            if busy:
                reserve_log(db, path)
            self._reader = Reader(path, name=path.stem)
        except AiosError:
            db.close(True)
            raise
        self._writer = GroupWriter(db, path, name=path.stem)
        self.read = self._reader.run
        self.read_soon = self._reader.submit
        self.view = self._reader.view
        self.write = self._writer.run
        self.submit = self._writer.submit

    def close(self) -> None:
        """Commit what is queued and close both connections; blocks."""
        self._writer.close()
        self._reader.close()
