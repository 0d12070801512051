"""Chat models: the leaf methods of every `BaseChatModel`, present and future."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, closing
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from aios_adapter_langchain.failures import as_model_errors
from aios_adapter_langchain.identity import caller
from aios_adapter_langchain.messages import wire_messages
from aios_adapter_langchain.request import ModelRequest, model_request
from aios_adapter_langchain.results import ChunkWriter, chat_result
from aios_adapters import Scope
from aios_adapters.patching import Patcher

Messages = list[BaseMessage]
Stop = list[str] | None


def install(patcher: Patcher) -> None:
    """Hook the four methods in which a chat model does its work."""
    leaves = {"_generate": generate, "_agenerate": agenerate, "_stream": stream, "_astream": astream}
    patcher.leaves(BaseChatModel, leaves, late="__pydantic_init_subclass__", kind="model")


def generate(
    scope: Scope,
    original: Callable[..., Any],
    model: BaseChatModel,
    /,
    messages: Messages,
    stop: Stop = None,
    run_manager: Any = None,
    **options: Any,
) -> ChatResult:
    """Ask the kernel; see `BaseChatModel._generate`."""
    own = caller(scope)
    with as_model_errors(own):
        request = model_request(model, wire_messages(messages), stop, options)
        results = [own.chat(request.call, timeout_s=request.timeout_s) for _ in range(request.answers)]
    return chat_result(request, results)


async def agenerate(
    scope: Scope,
    original: Callable[..., Any],
    model: BaseChatModel,
    /,
    messages: Messages,
    stop: Stop = None,
    run_manager: Any = None,
    **options: Any,
) -> ChatResult:
    """Like `generate`; several answers at once."""
    own = caller(scope)
    with as_model_errors(own):
        request = model_request(model, wire_messages(messages), stop, options)
        chats = (own.achat(request.call, timeout_s=request.timeout_s) for _ in range(request.answers))
        results = await asyncio.gather(*chats)
    return chat_result(request, results)


def stream(
    scope: Scope,
    original: Callable[..., Any],
    model: BaseChatModel,
    /,
    messages: Messages,
    stop: Stop = None,
    run_manager: Any = None,
    **options: Any,
) -> Iterator[ChatGenerationChunk]:
    """Ask the kernel for a stream; see `BaseChatModel._stream`."""
    own = caller(scope)
    with as_model_errors(own):
        request = model_request(model, wire_messages(messages), stop, options, n=False)
        writer = ChunkWriter(request)
        with closing(own.stream(request.call, timeout_s=request.timeout_s)) as pieces:
            for piece in pieces:
                for chunk in writer.chunks(piece):
                    if run_manager:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk, **_logprobs(request, chunk))
                    yield chunk


async def astream(
    scope: Scope,
    original: Callable[..., Any],
    model: BaseChatModel,
    /,
    messages: Messages,
    stop: Stop = None,
    run_manager: Any = None,
    **options: Any,
) -> AsyncGenerator[ChatGenerationChunk]:
    """Like `stream`."""
    own = caller(scope)
    with as_model_errors(own):
        request = model_request(model, wire_messages(messages), stop, options, n=False)
        writer = ChunkWriter(request)
        async with aclosing(own.astream(request.call, timeout_s=request.timeout_s)) as pieces:
            async for piece in pieces:
                for chunk in writer.chunks(piece):
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk, **_logprobs(request, chunk))
                    yield chunk


def _logprobs(request: ModelRequest, chunk: ChatGenerationChunk) -> dict[str, Any]:
    """What ChatOpenAI tells the callbacks beside the chunk."""
    return {"logprobs": (chunk.generation_info or {}).get("logprobs")} if request.call.sampling.logprobs else {}
