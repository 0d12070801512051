"""Stand-ins for OpenAI's clients: `chat.completions.create` asks the kernel and answers in the SDK's own types."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing, closing
from typing import Any, Self

import msgspec
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from aios_adapters import Scope
from aios_kernel.openai_wire import ChatExchange
from aios_kernel.syscalls import LlmDelta, LlmResult


class _Completions:
    def __init__(self, scope: Scope, timeout_s: float | None) -> None:
        self._scope = scope
        self._timeout_s = timeout_s


class _SyncCompletions(_Completions):
    def create(self, **body: Any) -> ChatCompletion | Generator[ChatCompletionChunk, None, None]:
        """Answer a request of Chat Completions. Raises Unsupported for a field that the kernel does not serve."""
        exchange = ChatExchange(body)
        if body.get("stream"):
            return self._stream(exchange)
        return _whole(exchange, self._scope.chat(exchange.call, timeout_s=self._timeout_s))

    def _stream(self, exchange: ChatExchange) -> Generator[ChatCompletionChunk, None, None]:
        head = exchange.begin()  # told with the first piece: an answer has begun when the model has
        with closing(self._scope.stream(exchange.call, timeout_s=self._timeout_s)) as source:
            for piece in source:
                yield from _told(exchange, piece, head)
                head = b""


class _AsyncCompletions(_Completions):
    async def create(self, **body: Any) -> ChatCompletion | AsyncGenerator[ChatCompletionChunk, None]:
        """Like the blocking one."""
        exchange = ChatExchange(body)
        if body.get("stream"):
            return self._stream(exchange)
        return _whole(exchange, await self._scope.achat(exchange.call, timeout_s=self._timeout_s))

    async def _stream(self, exchange: ChatExchange) -> AsyncGenerator[ChatCompletionChunk, None]:
        head = exchange.begin()
        async with aclosing(self._scope.astream(exchange.call, timeout_s=self._timeout_s)) as source:
            async for piece in source:
                for chunk in _told(exchange, piece, head):
                    yield chunk
                head = b""


class _SyncChat:
    def __init__(self, scope: Scope, timeout_s: float | None) -> None:
        self.completions = _SyncCompletions(scope, timeout_s)


class _AsyncChat:
    def __init__(self, scope: Scope, timeout_s: float | None) -> None:
        self.completions = _AsyncCompletions(scope, timeout_s)


class KernelClient:
    """What `OpenAI` (the LLM class) needs of `openai.OpenAI`."""

    def __init__(self, scope: Scope, timeout_s: float | None) -> None:
        self.chat = _SyncChat(scope, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open here."""


class AsyncKernelClient:
    """What `OpenAI` (the LLM class) needs of `openai.AsyncOpenAI`."""

    def __init__(self, scope: Scope, timeout_s: float | None) -> None:
        self.chat = _AsyncChat(scope, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open here."""


def _whole(exchange: ChatExchange, result: LlmResult) -> ChatCompletion:
    return ChatCompletion.model_validate(exchange.reply(result))


def _told(exchange: ChatExchange, piece: LlmDelta | LlmResult, head: bytes) -> Iterator[ChatCompletionChunk]:
    yield from _chunks(head)
    if isinstance(piece, LlmResult):
        yield from _ending(exchange, piece)
    else:
        for part in _one_call_each(piece):
            yield from _chunks(exchange.delta(part))


def _one_call_each(delta: LlmDelta) -> Iterator[LlmDelta]:
    """The framework reads one tool call from a chunk, as OpenAI sends them."""
    if delta.text or delta.logprobs:
        yield msgspec.structs.replace(delta, tool_calls=[])
    for call in delta.tool_calls:
        yield LlmDelta(tool_calls=[call])


def _ending(exchange: ChatExchange, result: LlmResult) -> Iterator[ChatCompletionChunk]:
    """The last chunks; the one with the finish reason has the usage, asked for or not."""
    usage = CompletionUsage.model_validate(exchange.reply(result)["usage"])
    for chunk in _chunks(exchange.end(result)):
        chunk.usage = usage
        yield chunk


def _chunks(events: bytes) -> Iterator[ChatCompletionChunk]:
    """The chunks in server-sent events."""
    for event in events.split(b"\n\n"):
        data = event.removeprefix(b"data: ")
        if data and data != b"[DONE]":
            yield ChatCompletionChunk.model_validate_json(data)
