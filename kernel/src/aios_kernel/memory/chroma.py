"""The vector index of the memory: chromadb in a process of its own.

Chroma's calls hold the interpreter lock to their end, disk sync included: an upsert of 512 vectors made the whole
kernel stand still for 0.7 s, one of 8 for 0.1 s (measured, chromadb 1.5.9, busy machine).
"""

from __future__ import annotations

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
from aios_kernel.memory.index import Hit, Space, Vector, Vectors

_BATCH: Final = 1000
_CLOSE_S: Final = 30.0


@final
class ChromaIndex:
    """`VectorIndex` on chromadb: one collection a space, searched by its graph.

    Args:
        path: the folder; deleted, it is rebuilt from the rows.
        model: the embedder's name; vectors of another model are dropped, so that they never mix.
    """

    def __init__(self, path: Path, model: str) -> None:
        self._worker = _Worker(path, model)

    def add(self, space: Space, ids: Sequence[str], vectors: Vectors) -> None:
        """See `VectorIndex.add`."""
        for start in range(0, len(ids), _BATCH):
            part = slice(start, start + _BATCH)
            self._worker.ask(wire.Add(space=space, ids=list(ids[part]), vectors=wire.to_bytes(vectors[part])))
            time.sleep(0)  # lets a search in between

    def search(self, space: Space, vector: Vector, k: int, allowed: Collection[str] | None = None) -> list[Hit]:
        """See `VectorIndex.search`."""
        if k < 1 or (allowed is not None and not allowed):
            return []
        ids = None if allowed is None else list(allowed)
        found = self._worker.ask(wire.Search(space=space, vector=wire.to_bytes(vector), k=k, allowed=ids))
        scores = wire.from_bytes(found.numbers, len(found.ids))
        return [Hit(id, float(score[0])) for id, score in zip(found.ids, scores, strict=True)]

    def delete(self, space: Space, ids: Sequence[str]) -> None:
        """See `VectorIndex.delete`."""
        if ids:
            self._worker.ask(wire.Delete(space=space, ids=list(ids)))

    def drop(self, space: Space) -> None:
        """See `VectorIndex.drop`."""
        self._worker.ask(wire.Drop(space=space))

    def count(self, space: Space) -> int:
        """See `VectorIndex.count`."""
        return self._worker.ask(wire.Count(space=space)).count

    def close(self) -> None:
        """See `VectorIndex.close`."""
        self._worker.close()


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
