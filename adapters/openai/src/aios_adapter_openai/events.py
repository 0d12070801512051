"""Bodies of streamed responses: server-sent events, written as the kernel's deltas come."""

from __future__ import annotations

import functools
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any, TypeAlias

from aios_adapter_openai.job import Job
from aios_kernel.errors import AiosError
from aios_kernel.openai_wire import Exchange
from aios_kernel.syscalls import LlmDelta, LlmResult

Piece: TypeAlias = LlmDelta | LlmResult


class _Body:
    """What both kinds share. The first piece was fetched before: had it failed, there would be no response at all.

    `release` is called when the stream is closed or forgotten: until then its program goes on.
    """

    def __init__(self, job: Job, exchange: Exchange, first: Piece, release: Callable[[], None]) -> None:
        self._job = job
        self._exchange = exchange
        self._first = first
        self._release = weakref.finalize(self, release)
        self._release.atexit = False  # the kernel notices the end of the process by itself

    def _write(self, piece: Piece) -> bytes:
        return self._exchange.delta(piece) if isinstance(piece, LlmDelta) else self._exchange.end(piece)

    def _opening(self) -> bytes:
        return self._exchange.begin() + self._write(self._first)


class SyncEvents(_Body):
    """A body for `OpenAI`; closing it stops the generation."""

    def __init__(
        self, job: Job, exchange: Exchange, first: Piece, pieces: Iterator[Piece], release: Callable[[], None]
    ) -> None:
        super().__init__(job, exchange, first, release)
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield self._opening()
        try:
            for piece in self._pieces:
                yield self._write(piece)
        except AiosError as error:
            raise self._job.native(error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Stop the generation, if it is not over."""
        if isinstance(self._pieces, Generator):
            self._pieces.close()
        self._release()


class AsyncEvents(_Body):
    """A body for `AsyncOpenAI`; closing it stops the generation."""

    def __init__(
        self, job: Job, exchange: Exchange, first: Piece, pieces: AsyncIterator[Piece], release: Callable[[], None]
    ) -> None:
        super().__init__(job, exchange, first, release)
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._opening()
        try:
            async for piece in self._pieces:
                yield self._write(piece)
        except AiosError as error:
            raise self._job.native(error) from error
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Stop the generation, if it is not over."""
        if isinstance(self._pieces, AsyncGenerator):
            await self._pieces.aclose()
        self._release()


def streamed(job: Job, kind: type[_Body], *args: Any) -> Any:
    """A response whose body is a `kind`."""
    base = job.library.SyncByteStream if kind is SyncEvents else job.library.AsyncByteStream
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    return job.response(headers=headers, stream=_derived(kind, base)(job, *args))


@functools.cache
def _derived(kind: type[_Body], base: type) -> Any:
    """The class, also derived from what the HTTP library wants a body to be."""
    return type(kind.__name__, (kind, base), {})
