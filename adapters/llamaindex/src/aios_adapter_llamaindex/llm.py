"""The eight leaves of every LLM class: `chat`, `complete`, their streams and their async forms.

The functions here carry the framework's own decorators, so that its callbacks, events, spans and rate limiters work
on a rerouted call as on any other.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing, closing
from typing import Any

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.generic_utils import (
    astream_chat_response_to_completion_response,
    chat_response_to_completion_response,
    stream_chat_response_to_completion_response,
)
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index_instrumentation import get_dispatcher

from aios_adapter_llamaindex.answers import StreamedAnswer, chat_response
from aios_adapter_llamaindex.delegation import delegates
from aios_adapter_llamaindex.request import chat_call
from aios_adapters import Scope
from aios_adapters._scope import required
from aios_adapters.patching import Patcher, Wrapper

_dispatcher = get_dispatcher(__name__)


def install(patcher: Patcher) -> None:
    """Reroute the leaves of all LLM classes, present and future."""
    wrappers: dict[str, Wrapper] = {
        "chat": _plain(_chat),
        "complete": _plain(_complete),
        "stream_chat": _stream(_stream_chat),
        "stream_complete": _stream(_stream_complete),
        "achat": _coroutine(_achat),
        "acomplete": _coroutine(_acomplete),
        "astream_chat": _async_stream(_astream_chat),
        "astream_complete": _async_stream(_astream_complete),
    }
    patcher.leaves(BaseLLM, wrappers, late="__pydantic_init_subclass__", kind="model")


def _plain(kernel_call: Any) -> Wrapper:
    def wrapper(scope: Scope, original: Any, llm: BaseLLM, /, *args: Any, **kwargs: Any) -> Any:
        call = original if delegates(llm, original) else kernel_call
        return call.__get__(llm)(*args, **kwargs)

    return wrapper


def _stream(kernel_call: Any) -> Wrapper:
    plain = _plain(kernel_call)

    def wrapper(scope: Scope, original: Any, llm: BaseLLM, /, *args: Any, **kwargs: Any) -> Any:
        return _held(plain(scope, original, llm, *args, **kwargs), scope.hold())

    return wrapper


def _coroutine(kernel_call: Any) -> Wrapper:
    async def wrapper(scope: Scope, original: Any, llm: BaseLLM, /, *args: Any, **kwargs: Any) -> Any:
        call = original if delegates(llm, original) else kernel_call
        return await call.__get__(llm)(*args, **kwargs)

    return wrapper


def _async_stream(kernel_call: Any) -> Wrapper:
    coroutine = _coroutine(kernel_call)

    async def wrapper(scope: Scope, original: Any, llm: BaseLLM, /, *args: Any, **kwargs: Any) -> Any:
        return _aheld(await coroutine(scope, original, llm, *args, **kwargs), scope.hold())

    return wrapper


def _held(source: Generator[Any, None, None], release: Callable[[], None]) -> Generator[Any, None, None]:
    """A stream that keeps its program running until it ends: it may be read after the agent's function returned."""
    try:
        yield from source
    finally:
        release()


async def _aheld(source: AsyncGenerator[Any, None], release: Callable[[], None]) -> AsyncGenerator[Any, None]:
    try:
        async with aclosing(source) as items:
            async for item in items:
                yield item
    finally:
        release()


# --- the calls ------------------------------------------------------------------------------------------------------


def _speaks_openai(llm: BaseLLM) -> bool:
    """Whether the class expects the arguments of tool calls as JSON text, as OpenAI's classes do."""
    return any(base.__module__.startswith("llama_index.llms.openai") for base in type(llm).__mro__)


def _ask(llm: BaseLLM, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> ChatResponse:
    result = required("llm.chat").chat(chat_call(llm, messages, kwargs))
    return chat_response(result, as_text=_speaks_openai(llm))


async def _aask(llm: BaseLLM, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> ChatResponse:
    result = await required("llm.chat").achat(chat_call(llm, messages, kwargs))
    return chat_response(result, as_text=_speaks_openai(llm))


def _tell(llm: BaseLLM, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Generator[ChatResponse, None, None]:
    scope, call = required("llm.chat"), chat_call(llm, messages, kwargs)
    answer = StreamedAnswer(as_text=_speaks_openai(llm))

    def pieces() -> Generator[ChatResponse, None, None]:
        with closing(scope.stream(call)) as source:
            for piece in source:
                yield answer.grown(piece)

    return pieces()


def _atell(llm: BaseLLM, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> AsyncGenerator[ChatResponse, None]:
    scope, call = required("llm.chat"), chat_call(llm, messages, kwargs)
    answer = StreamedAnswer(as_text=_speaks_openai(llm))

    async def pieces() -> AsyncGenerator[ChatResponse, None]:
        async with aclosing(scope.astream(call)) as source:
            async for piece in source:
                yield answer.grown(piece)

    return pieces()


def _asked(prompt: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=prompt)]


# --- under the framework's decorators; their names are what its spans show ------------------------------------------


def _named(name: str, decorator: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        function.__name__ = name
        return _dispatcher.span(decorator(function))

    return decorate


@_named("chat", llm_chat_callback())
def _chat(self: BaseLLM, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
    return _ask(self, messages, kwargs)


@_named("achat", llm_chat_callback())
async def _achat(self: BaseLLM, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
    return await _aask(self, messages, kwargs)


@_named("stream_chat", llm_chat_callback())
def _stream_chat(self: BaseLLM, messages: Sequence[ChatMessage], **kwargs: Any) -> Generator[ChatResponse, None, None]:
    return _tell(self, messages, kwargs)


@_named("astream_chat", llm_chat_callback())
async def _astream_chat(
    self: BaseLLM, messages: Sequence[ChatMessage], **kwargs: Any
) -> AsyncGenerator[ChatResponse, None]:
    return _atell(self, messages, kwargs)


@_named("complete", llm_completion_callback())
def _complete(self: BaseLLM, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
    return chat_response_to_completion_response(_ask(self, _asked(prompt), kwargs))


@_named("acomplete", llm_completion_callback())
async def _acomplete(self: BaseLLM, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
    return chat_response_to_completion_response(await _aask(self, _asked(prompt), kwargs))


@_named("stream_complete", llm_completion_callback())
def _stream_complete(
    self: BaseLLM, prompt: str, formatted: bool = False, **kwargs: Any
) -> Generator[CompletionResponse, None, None]:
    return stream_chat_response_to_completion_response(_tell(self, _asked(prompt), kwargs))


@_named("astream_complete", llm_completion_callback())
async def _astream_complete(
    self: BaseLLM, prompt: str, formatted: bool = False, **kwargs: Any
) -> AsyncGenerator[CompletionResponse, None]:
    return astream_chat_response_to_completion_response(_atell(self, _asked(prompt), kwargs))
