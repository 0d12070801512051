"""The process that owns the chroma folder: `python -m aios_kernel.memory.chroma_worker FOLDER MODEL`.

It serves the kernel that started it over its standard streams and ends with it. A lock beside the folder keeps a second
worker out, also the one of a killed kernel that is still busy.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from typing import IO, Final

import msgspec
import numpy as np

from aios_kernel.errors import AiosError, KernelLocked
from aios_kernel.memory import chroma_wire as wire
from aios_kernel.memory.chroma_store import ChromaStore

_LOCK_WAIT_S: Final = 10.0


def main() -> None:
    """Serve until the other side closes the stream."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the kernel, which closes this process in order
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not land among the frames
    path, model = Path(sys.argv[1]), sys.argv[2]
    try:
        lock = lock_folder(path)
        store = ChromaStore(path, model)
    except AiosError as error:
        wire.write_frame(answers, _failed(error))
        return
    wire.write_frame(answers, wire.Reply())
    _serve(store, sys.stdin.buffer, answers)
    store.close()
    os.close(lock)


def _serve(store: ChromaStore, requests: IO[bytes], answers: IO[bytes]) -> None:
    decoder = msgspec.msgpack.Decoder(wire.Request)
    while (request := wire.read_frame(requests, decoder)) is not None:
        try:
            reply = _answer(store, request)
        except AiosError as error:
            reply = _failed(error)
        wire.write_frame(answers, reply)


def _answer(store: ChromaStore, request: wire.Request) -> wire.Reply:
    space = request.space
    match request:
        case wire.Add():
            store.add(space, request.ids, wire.from_bytes(request.vectors, len(request.ids)))
        case wire.Search():
            hits = store.search(space, wire.from_bytes(request.vector, 1)[0], request.k, request.allowed)
            scores = np.array([hit.score for hit in hits], np.float32)
            return wire.Reply(ids=[hit.id for hit in hits], numbers=wire.to_bytes(scores))
        case wire.Delete():
            store.delete(space, request.ids)
        case wire.Drop():
            store.drop(space)
        case wire.Count():
            return wire.Reply(count=store.count(space))
    return wire.Reply()


def _failed(error: AiosError) -> wire.Reply:
    return wire.Reply(code=error.code, message=error.message, fix=error.fix)


def lock_folder(path: Path, *, wait_s: float = _LOCK_WAIT_S) -> int:
    """Take the lock of a chroma folder, waiting for a worker that is about to end; gives the open lock file.

    Raises:
        KernelLocked: somebody else has held it for all of `wait_s` seconds.
    """
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise KernelLocked(
                    f"another process holds {path}", fix="end the other kernel on this data directory"
                ) from None
            time.sleep(0.02)


if __name__ == "__main__":
    main()
