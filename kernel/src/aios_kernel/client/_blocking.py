"""The blocking client, for threads and synchronous frameworks."""

from __future__ import annotations

import contextlib
import functools
import queue
from collections.abc import Callable, Generator

from aios_kernel.client._connection import Connection, raised
from aios_kernel.errors import AiosError
from aios_kernel.syscalls import Delta, Done, Failed, KernelFrame, LlmChat, LlmDelta, LlmResult, Result, Syscall


class Client:
    """Calls that block the calling thread. Thread-safe; an interrupted call is cancelled in the kernel."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def call(self, call: Syscall, *, program: str | None = None, timeout_s: float | None = None) -> Result:
        """Run a syscall to its end; raises the AiosError that it failed with."""
        inbox = _Inbox()
        number = self.connection.submit(call, inbox, program=program, timeout_s=timeout_s)
        try:
            while isinstance(frame := inbox.get(), Delta):
                pass
        except BaseException:
            self.connection.cancel(number)
            raise
        if isinstance(frame, Failed):
            raise raised(frame)
        assert isinstance(frame, Done)
        return frame.result

    def stream(
        self, call: LlmChat, *, program: str | None = None, timeout_s: float | None = None
    ) -> Generator[LlmDelta | LlmResult]:
        """Yield the deltas of a streamed chat and at last its `LlmResult`. Leaving early cancels the rest."""
        with contextlib.closing(self._frames(call, program, timeout_s)) as frames:
            for frame in frames:
                if isinstance(frame, Delta):
                    yield frame.delta
                elif isinstance(frame, Done) and isinstance(frame.result, LlmResult):
                    yield frame.result

    def post(self, call: Syscall, *, program: str | None = None) -> None:
        """Send a syscall and do not wait for its end (its error, if any, is in the kernel's trace)."""
        self.connection.submit(call, _Nowhere(), program=program, timeout_s=None)

    def start(
        self, call: Syscall, then: Callable[[Result | AiosError], None], *, program: str | None = None
    ) -> Callable[[], None]:
        """Send a syscall and do not wait; gives what cancels it.

        `then` is called once with its result or its error, by the thread that reads from the kernel: it must not block.
        """
        number = self.connection.submit(call, _Then(then), program=program, timeout_s=None)
        return functools.partial(self.connection.cancel, number)

    def _frames(self, call: Syscall, program: str | None, timeout_s: float | None) -> Generator[KernelFrame]:
        inbox = _Inbox()
        number = self.connection.submit(call, inbox, program=program, timeout_s=timeout_s)
        ended = False
        try:
            while not ended:
                frame = inbox.get()
                ended = not isinstance(frame, Delta)
                if isinstance(frame, Failed):
                    raise raised(frame)
                yield frame
        finally:
            if not ended:
                self.connection.cancel(number)


class _Inbox:
    """A sink that a thread waits on."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[KernelFrame] = queue.SimpleQueue()

    def put(self, frame: KernelFrame) -> None:
        self._queue.put(frame)

    def get(self) -> KernelFrame:
        return self._queue.get()


class _Then:
    """A sink that tells how a request ended."""

    def __init__(self, then: Callable[[Result | AiosError], None]) -> None:
        self._then = then

    def put(self, frame: KernelFrame) -> None:
        if isinstance(frame, Done):
            self._then(frame.result)
        elif isinstance(frame, Failed):
            self._then(raised(frame))


class _Nowhere:
    """A sink for answers that nobody waits for."""

    def put(self, frame: KernelFrame) -> None:
        """Drop the frame."""
