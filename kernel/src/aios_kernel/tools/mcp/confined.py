"""The process of an MCP server that is kept at an isolation level."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Final, final

from aios_kernel.errors import AiosError
from aios_kernel.tools.isolation.confine import Serve, how_it_ended
from aios_kernel.tools.isolation.process import Outcome
from aios_kernel.tools.mcp.hidden import visible
from aios_kernel.tools.mcp.process import LAST_WORDS, MOST_LINE

_GRACE_S: Final = 2.0


@final
class ConfinedProcess:
    """A running server at an isolation level; see `ServedProcess`. Made by `start`.

    With the kernel it dies, whatever becomes of that, and with it all that it has started.
    """

    def __init__(self, serve: Serve, ends: list[int], stdin: asyncio.StreamWriter) -> None:
        self._words = bytearray()
        self.stdin = stdin
        self.stdout = asyncio.StreamReader(limit=MOST_LINE)
        self._stderr = asyncio.StreamReader()
        self._life: asyncio.Future[Outcome] = asyncio.ensure_future(serve(ends))
        self._listener = asyncio.create_task(self._listen())
        self._pipes: list[asyncio.BaseTransport] = [stdin.transport]

    @classmethod
    async def start(cls, serve: Serve) -> ConfinedProcess:
        """Start it; that it cannot be started is told by its end (`obituary`)."""
        ours: list[int] = []
        theirs: list[int] = []
        try:
            for writes in (True, False, False):
                pair = os.pipe()
                ours.append(pair[1 if writes else 0])
                theirs.append(pair[0 if writes else 1])
            stdin = await _writer(ours[0])
        except BaseException:
            for descriptor in (*ours, *theirs):
                os.close(descriptor)
            raise
        process = cls(serve, [*theirs, os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)], stdin)
        for reader, descriptor in ((process.stdout, ours[1]), (process._stderr, ours[2])):
            process._pipes.append(await _read_into(reader, descriptor))
        return process

    async def obituary(self) -> str:
        """How it ended, in words, waiting a moment for it to be known."""
        with contextlib.suppress(TimeoutError, AiosError):
            async with asyncio.timeout(0.5):
                await asyncio.shield(self._life)
                await asyncio.shield(self._listener)
        if not self._life.done():
            return "it closed its output and still runs"
        try:
            how = f"it {how_it_ended(self._life.result().status)}"
        except AiosError as error:
            return error.message
        words = visible(self._words.decode(errors="replace").strip())
        return f"{how}; its last words: {words}" if words else how

    async def stop(self, *, patient: bool = True) -> None:
        """End it and all that it has started: close its input, and after two seconds SIGKILL."""
        with contextlib.suppress(OSError, RuntimeError):
            self.stdin.close()
        if patient:
            await asyncio.wait([self._life], timeout=_GRACE_S)
        self._life.cancel()
        self._listener.cancel()
        await asyncio.gather(self._life, self._listener, return_exceptions=True)
        for pipe in self._pipes:
            pipe.close()

    async def _listen(self) -> None:
        """Read standard error for as long as it comes, and keep the end of it: a full pipe would block the server."""
        while chunk := await self._stderr.read(65536):
            self._words += chunk
            del self._words[:-LAST_WORDS]


async def _writer(descriptor: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    file = os.fdopen(descriptor, "wb", buffering=0)
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
    transport, _ = await loop.connect_write_pipe(lambda: protocol, file)
    return asyncio.StreamWriter(transport, protocol, None, loop)


async def _read_into(reader: asyncio.StreamReader, descriptor: int) -> asyncio.BaseTransport:
    file = os.fdopen(descriptor, "rb", buffering=0)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    return transport
