"""The asyncio client; works from any event loop of the process, also from several at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from aios_kernel.client._connection import Connection, raised
from aios_kernel.syscalls import Delta, Done, Failed, KernelFrame, LlmChat, LlmDelta, LlmResult, Result, Syscall


class AsyncClient:
    """Calls that await. A cancelled task cancels its call in the kernel."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def call(self, call: Syscall, *, program: str | None = None, timeout_s: float | None = None) -> Result:
        """Run a syscall to its end; raises the AiosError that it failed with."""
        inbox = _Inbox(asyncio.get_running_loop())
        number = self.connection.submit(call, inbox, program=program, timeout_s=timeout_s)
        try:
            while isinstance(frame := await inbox.get(), Delta):
                pass
        except BaseException:
            self.connection.cancel(number)
            raise
        if isinstance(frame, Failed):
            raise raised(frame)
        assert isinstance(frame, Done)
        return frame.result

    async def stream(
        self, call: LlmChat, *, program: str | None = None, timeout_s: float | None = None
    ) -> AsyncGenerator[LlmDelta | LlmResult, None]:
        """Yield the deltas of a streamed chat and at last its `LlmResult`. Leaving early cancels the rest."""
        async with aclosing(self._frames(call, program, timeout_s)) as frames:
            async for frame in frames:
                if isinstance(frame, Delta):
                    yield frame.delta
                elif isinstance(frame, Done) and isinstance(frame.result, LlmResult):
                    yield frame.result

    async def _frames(
        self, call: Syscall, program: str | None, timeout_s: float | None
    ) -> AsyncGenerator[KernelFrame, None]:
        inbox = _Inbox(asyncio.get_running_loop())
        number = self.connection.submit(call, inbox, program=program, timeout_s=timeout_s)
        ended = False
        try:
            while not ended:
                frame = await inbox.get()
                ended = not isinstance(frame, Delta)
                if isinstance(frame, Failed):
                    raise raised(frame)
                yield frame
        finally:
            if not ended:
                self.connection.cancel(number)


class _Inbox:
    """A sink that a task waits on; frames hop from the reader thread into the task's loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[KernelFrame] = asyncio.Queue()

    def put(self, frame: KernelFrame) -> None:
        with suppress(RuntimeError):  # the loop was closed; its task is gone with it
            self._loop.call_soon_threadsafe(self._queue.put_nowait, frame)

    async def get(self) -> KernelFrame:
        return await self._queue.get()
