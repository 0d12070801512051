"""The stdio transport: JSON-RPC lines to and from a server's process, with limits that the `mcp` package's has not.

A server is somebody else's program: a line without an end, a stream without an end, or bytes that are no message end
the connection with a reason, and the process with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCRequest, JSONRPCResponse, jsonrpc_message_adapter

from aios_kernel.tools.mcp.flood import Allowance
from aios_kernel.tools.mcp.process import MOST_LINE, StartProcess

_log = logging.getLogger(__name__)
_FLUSH_S = 0.5


@final
class StdioTransport:
    """One run of a server's command, as a transport of `mcp.Client`: a context manager that gives two streams.

    Args:
        name: for the log.
        start: starts its process.
        ended: called once, with the reason in words, when the server ends the connection or must not go on.
    """

    def __init__(self, name: str, start: StartProcess, ended: Callable[[str], None]) -> None:
        self._name = name
        self._start = start
        self._ended = ended
        self._tasks: list[asyncio.Task[None]] = []
        self._asked: set[int | str] = set()
        self._broken = False
        self._closing = False

    async def __aenter__(self) -> tuple[MemoryObjectReceiveStream[Any], MemoryObjectSendStream[SessionMessage]]:
        """Start the process. Raises ToolNotStarted."""
        self._process = await self._start()
        self._allowance = Allowance(asyncio.get_running_loop().time())
        self._inward, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        write, self._outward = anyio.create_memory_object_stream[SessionMessage](0)
        self._streams = (self._inward, read, write, self._outward)
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]
        return read, write

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process and its children."""
        self._closing = True
        self._streams[2].close()
        if not self._broken:
            await asyncio.wait(self._tasks[1:], timeout=_FLUSH_S)  # what was accepted, a cancellation say, goes out
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._process.stop(patient=not self._broken)
        for stream in self._streams:
            await stream.aclose()

    async def _read(self) -> None:
        """Hand on what it writes, line by line; the next line is read when the last was taken."""
        stdout = self._process.stdout
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            while not self._broken:
                try:
                    line = await stdout.readuntil(b"\n")
                except asyncio.LimitOverrunError:
                    self._fail(f"it sent a message of more than {MOST_LINE:,} bytes")
                    return
                except (asyncio.IncompleteReadError, OSError):
                    await self._hang_up()
                    return
                message = self._message(line)
                if message is not None:
                    await self._inward.send(message)

    def _message(self, line: bytes) -> SessionMessage | None:
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            self._take(len(line))
            if line.lstrip()[:1] in (b"{", b"["):
                self._fail(f"it sent what is no MCP message: {line[:80].decode(errors='replace')!a}")
            return None  # a line that some library prints
        if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id in self._asked:
            self._asked.discard(message.id)
        elif not self._take(len(line)):
            return None
        return SessionMessage(message)

    def _take(self, size: int) -> bool:
        if self._allowance.take(size, asyncio.get_running_loop().time()):
            return True
        self._fail("it sends without end what nobody asked for")
        return False

    async def _write(self) -> None:
        stdin = self._process.stdin
        try:
            async for outgoing in self._outward:
                if isinstance(outgoing.message, JSONRPCRequest):
                    self._asked.add(outgoing.message.id)
                data = outgoing.message.model_dump_json(by_alias=True, exclude_unset=True)
                stdin.write(data.encode() + b"\n")
                await stdin.drain()
        except OSError:
            await self._hang_up()
        except anyio.ClosedResourceError:
            return  # by `_fail`

    async def _hang_up(self) -> None:
        if not self._closing:
            self._fail(await self._process.obituary())

    def _fail(self, reason: str) -> None:
        """End the connection: what is open on it fails at once."""
        if self._broken or self._closing:
            return
        self._broken = True
        _log.info("MCP server %s: %s", self._name, reason)
        self._inward.close()
        self._outward.close()  # nobody shall wait for this server to read
        self._ended(reason)
