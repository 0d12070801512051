"""Model clients: every `ChatCompletionClient` inside a scope is served by the kernel."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from autogen_core import EVENT_LOGGER_NAME, CancellationToken
from autogen_core.logging import LLMCallEvent, LLMStreamEndEvent, LLMStreamStartEvent
from autogen_core.models import ChatCompletionClient, CreateResult

from aios_adapter_autogen.request import ModelRequest, model_request, wire_messages, wire_tools
from aios_adapter_autogen.result import account, create_result
from aios_adapters._scope import Scope
from aios_adapters.patching import Patcher
from aios_kernel.openai_wire.chat_reply import ChatExchange
from aios_kernel.syscalls import LlmDelta, LlmResult

T = TypeVar("T")
_events = logging.getLogger(EVENT_LOGGER_NAME)


def install(patcher: Patcher) -> None:
    """Hook every model client, present and future."""
    calls = ModelCalls(TokenMeter())
    answers = {"create": calls.create, "create_stream": calls.create_stream}
    patcher.leaves(ChatCompletionClient, answers, kind="model")
    patcher.leaves(ChatCompletionClient, {"count_tokens": calls.count_tokens}, kind="detail")


class TokenMeter:
    """Estimates the tokens of a request before it is made, in the measure of the model that serves the others."""

    def __init__(self) -> None:
        self._tokens_per_character = 0.25

    def learn(self, body: dict[str, Any], prompt_tokens: int) -> None:
        """Take in what a request really cost."""
        if prompt_tokens > 0:
            self._tokens_per_character = prompt_tokens / _characters(body)

    def estimate(self, body: dict[str, Any]) -> int:
        """Tokens of the messages and tools of a request."""
        return max(1, round(_characters(body) * self._tokens_per_character))


class ModelCalls:
    """The wrappers of `create`, `create_stream` and `count_tokens`."""

    def __init__(self, meter: TokenMeter) -> None:
        self._meter = meter

    async def create(
        self,
        scope: Scope,
        original: Callable[..., Any],
        client: Any,
        /,
        messages: Any,
        *,
        cancellation_token: CancellationToken | None = None,
        **kwargs: Any,
    ) -> CreateResult:
        """`ChatCompletionClient.create`."""
        if _delegates(client, original, "create"):
            return await original(client, messages, cancellation_token=cancellation_token, **kwargs)
        request = _request(client, messages, kwargs)
        exchange = ChatExchange(request.body)
        asking = scope.achat(exchange.call, timeout_s=request.timeout_s)
        answer = await (asking if cancellation_token is None else _linked(asking, cancellation_token))
        result = self._finish(client, request, answer)
        if _events.isEnabledFor(logging.INFO):
            _events.info(
                LLMCallEvent(
                    messages=request.body["messages"],
                    response=exchange.reply(answer),
                    prompt_tokens=result.usage.prompt_tokens,
                    completion_tokens=result.usage.completion_tokens,
                    tools=request.body.get("tools", []),
                )
            )
        return result

    async def create_stream(
        self,
        scope: Scope,
        original: Callable[..., Any],
        client: Any,
        /,
        messages: Any,
        *,
        cancellation_token: CancellationToken | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[str | CreateResult, None]:
        """`ChatCompletionClient.create_stream`: texts, at last the `CreateResult`."""
        if _delegates(client, original, "create_stream"):
            async with aclosing(original(client, messages, cancellation_token=cancellation_token, **kwargs)) as items:
                async for item in items:
                    yield item
            return
        request = _request(client, messages, kwargs)
        source = scope.astream(ChatExchange(request.body).call, timeout_s=request.timeout_s)
        if cancellation_token is not None:
            source = _linked_stream(source, cancellation_token)
        started = False
        async with aclosing(source) as pieces:
            async for piece in pieces:
                if not started:
                    started = True
                    _events.info(LLMStreamStartEvent(messages=request.body["messages"]))
                if isinstance(piece, LlmDelta):
                    if piece.text:
                        yield piece.text
                else:
                    yield self._end_stream(client, request, piece)

    def count_tokens(
        self, scope: Scope, original: Callable[..., int], client: Any, /, messages: Any, *, tools: Any = ()
    ) -> int:
        """`ChatCompletionClient.count_tokens`, estimated for the model served here; the original may need a network."""
        body: dict[str, Any] = {"messages": wire_messages(messages), "tools": wire_tools(tools)}
        return self._meter.estimate(body)

    def _end_stream(self, client: Any, request: ModelRequest, answer: LlmResult) -> CreateResult:
        result = self._finish(client, request, answer)
        if _events.isEnabledFor(logging.INFO):
            _events.info(
                LLMStreamEndEvent(
                    response=result.model_dump(),
                    prompt_tokens=result.usage.prompt_tokens,
                    completion_tokens=result.usage.completion_tokens,
                )
            )
        return result

    def _finish(self, client: Any, request: ModelRequest, answer: LlmResult) -> CreateResult:
        offered = {tool["function"]["name"] for tool in request.body.get("tools", ())}
        result = create_result(answer, offered)
        account(client, result.usage)
        self._meter.learn(request.body, answer.usage.prompt_tokens)
        return result


_ASKED = ("tools", "tool_choice", "json_output", "extra_create_args")


def _request(client: Any, messages: Any, kwargs: dict[str, Any]) -> ModelRequest:
    """What is left in `kwargs` are options of one client's transport (such as OpenAI's `include_usage`)."""
    return model_request(client, messages, **{name: kwargs[name] for name in _ASKED if name in kwargs})


def _delegates(client: Any, original: Callable[..., Any], name: str) -> bool:
    """Whether this method leads to another client's, which is rerouted in its turn: a cache, a recorder, a subclass.

    Their own work (a cache's look-up, a subclass's changes to the messages) must happen as without us.
    """
    names = getattr(getattr(original, "__code__", None), "co_names", ())
    if "super" in names and name in names:
        return True
    return any(isinstance(value, ChatCompletionClient) for value in getattr(client, "__dict__", {}).values())


def _linked(asking: Awaitable[T], token: CancellationToken) -> asyncio.Future[T]:
    """Await under a token: its `cancel()` raises CancelledError here and stops the generation."""
    future = asyncio.ensure_future(asking)
    token.link_future(future)
    return future


async def _linked_stream(source: AsyncGenerator[T, None], token: CancellationToken) -> AsyncGenerator[T, None]:
    waiting: asyncio.Future[T] | None = None

    def cancel() -> None:
        if waiting is not None:
            waiting.cancel()

    token.add_callback(cancel)
    async with aclosing(source) as pieces:
        while not token.is_cancelled():
            waiting = asyncio.ensure_future(anext(pieces))
            try:
                piece = await waiting
            except StopAsyncIteration:
                return
            yield piece
        raise asyncio.CancelledError


def _characters(body: dict[str, Any]) -> int:
    return len(json.dumps([body["messages"], body.get("tools") or []], default=str))
