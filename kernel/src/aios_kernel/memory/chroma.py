"""The vector index of the memory: chromadb in a process of its own, and copies of its smaller spaces in RAM.

Why a process: chroma's calls hold the interpreter lock to their end, disk sync included. An upsert of 512 vectors made
the whole kernel stand still for 0.7 s, one of 8 for 0.1 s (measured, chromadb 1.5.9, busy machine).

Why copies: chroma's graph search loses notes whose vectors are nearly equal. Of 1,000 such notes 35 to 48 were missing
even when all were asked for (measured, default links; none of ordinary texts). So a space of up to 20,000 vectors is
searched exactly, in a copy that is read from its collection; larger ones by the graph.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, final

import msgspec

from aios_kernel.errors import InternalError, from_code
from aios_kernel.memory import chroma_wire as wire
from aios_kernel.memory.chroma_store import rebuild
from aios_kernel.memory.exact import ExactIndex
from aios_kernel.memory.index import Hit, Space, Vector, Vectors

_BATCH: Final = 256
_EXACT_LIMIT: Final = 20_000
_COPIED_LIMIT: Final = 100_000
_CLOSE_S: Final = 30.0


@final
class ChromaIndex:
    """`VectorIndex` on chromadb; see the module's docstring.

    Args:
        path: the folder; deleted, it is rebuilt from the rows.
        model: the embedder's name; vectors of another model are dropped, so that they never mix.
        exact_limit: spaces of up to this many vectors are searched exactly.
    """

    def __init__(self, path: Path, model: str, *, exact_limit: int = _EXACT_LIMIT) -> None:
        self._worker = _Worker(path, model)
        self._exact_limit = exact_limit
        self._copies = ExactIndex()
        self._copied: dict[Space, int] = {}  # when each copy was last used, by `_uses`
        self._uses = itertools.count()
        self._large: set[Space] = set()  # searched by the graph
        self._lock = threading.Lock()  # who holds it may change collections and copies

    def add(self, space: Space, ids: Sequence[str], vectors: Vectors) -> None:
        """See `VectorIndex.add`."""
        with self._lock:
            if space not in self._copied:
                self._copy(space)
            for start in range(0, len(ids), _BATCH):
                part = slice(start, start + _BATCH)
                self._worker.ask(wire.Add(space=space, ids=list(ids[part]), vectors=wire.to_bytes(vectors[part])))
                time.sleep(0)  # lets a search of a large space in between
            if space in self._copied:
                self._copies.add(space, ids, vectors)
                self._bound_copies()

    def search(self, space: Space, vector: Vector, k: int, allowed: Collection[str] | None = None) -> list[Hit]:
        """See `VectorIndex.search`."""
        if k < 1 or (allowed is not None and not allowed):
            return []
        while not (space in self._copied or space in self._large):
            # An `add` holds the lock for long, but makes the copy first: no need to wait for its end.
            if self._lock.acquire(timeout=0.01):
                try:
                    self._copy(space)
                finally:
                    self._lock.release()
        hits = self._copies.search(space, vector, k, allowed)
        if space in self._copied:
            self._copied[space] = next(self._uses)
            return hits
        ids = None if allowed is None else list(allowed)
        found = self._worker.ask(wire.Search(space=space, vector=wire.to_bytes(vector), k=k, allowed=ids))
        scores = wire.from_bytes(found.numbers, len(found.ids))
        return [Hit(id, float(score[0])) for id, score in zip(found.ids, scores, strict=True)]

    def delete(self, space: Space, ids: Sequence[str]) -> None:
        """See `VectorIndex.delete`."""
        with self._lock:
            if ids:
                self._worker.ask(wire.Delete(space=space, ids=list(ids)))
                self._copies.delete(space, ids)

    def drop(self, space: Space) -> None:
        """See `VectorIndex.drop`."""
        with self._lock:
            self._worker.ask(wire.Drop(space=space))
            self._forget_copy(space)
            self._large.discard(space)

    def count(self, space: Space) -> int:
        """See `VectorIndex.count`."""
        return self._worker.ask(wire.Count(space=space)).count

    def close(self) -> None:
        """See `VectorIndex.close`."""
        with self._lock:
            self._worker.close()

    def _copy(self, space: Space) -> None:
        """Read the vectors of a space into RAM, or note that they are too many."""
        total = self._worker.ask(wire.Count(space=space)).count
        if total > self._exact_limit:
            self._large.add(space)
            return
        for start in range(0, total, _BATCH):
            page = self._worker.ask(wire.Page(space=space, start=start, limit=_BATCH))
            if page.ids:
                self._copies.add(space, page.ids, wire.from_bytes(page.numbers, len(page.ids)))
        self._copied[space] = next(self._uses)
        self._large.discard(space)
        self._bound_copies()

    def _bound_copies(self) -> None:
        """Drop copies that grew too large, and the least recently used while there are too many."""
        sizes = {space: self._copies.count(space) for space in sorted(self._copied, key=self._copied.__getitem__)}
        total = sum(sizes.values())
        for space, size in sizes.items():
            if size > self._exact_limit:
                self._large.add(space)
            if size > self._exact_limit or (total > _COPIED_LIMIT and len(self._copied) > 1):
                self._forget_copy(space)
                total -= size

    def _forget_copy(self, space: Space) -> None:
        self._copied.pop(space, None)
        self._copies.drop(space)


@final
class _Worker:
    """The process that owns the folder; one that died is replaced at the next question."""

    def __init__(self, path: Path, model: str) -> None:
        self._path = path
        self._model = model
        self._decoder = msgspec.msgpack.Decoder(wire.Reply)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        with self._lock:
            self._started()

    def ask(self, request: wire.Request) -> wire.Reply:
        """Send a request and wait for its answer; raises the error that it holds."""
        with self._lock:
            return self._exchange(self._started(), request)

    def close(self) -> None:
        """End the process after what it does; blocks."""
        with self._lock:
            self._stop(_CLOSE_S)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop(0.0)
        command = [sys.executable, "-m", "aios_kernel.memory.chroma_worker", str(self._path), self._model]
        # A session of its own: signals of the terminal are for the kernel.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._exchange(self._process, None)
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], request: wire.Request | None) -> wire.Reply:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if request is not None:
                wire.write_frame(process.stdin, request)
            reply = wire.read_frame(process.stdout, self._decoder)
        except OSError:
            reply = None
        if reply is None:
            self._stop(1.0)
            raise InternalError("the process of the vector index died", fix=f"try again; {rebuild(self._path)}")
        if reply.code is not None:
            if request is None:
                self._stop(1.0)
            raise from_code(reply.code, reply.message, fix=reply.fix)
        return reply

    def _stop(self, patience_s: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was buffered for a process that is gone
                    continue
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
