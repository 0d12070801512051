"""Completion models: the leaf methods of every `BaseLLM`. A prompt becomes a chat of one user's message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any

from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from aios_adapter_langchain.failures import as_model_errors
from aios_adapter_langchain.identity import caller
from aios_adapter_langchain.request import ModelRequest, model_request
from aios_adapter_langchain.results import token_usage
from aios_adapters import Scope
from aios_adapters.patching import Patcher
from aios_kernel.syscalls import LlmDelta, LlmResult

Stop = list[str] | None


def install(patcher: Patcher) -> None:
    """Hook the four methods in which a completion model does its work."""
    leaves = {"_generate": _generate, "_agenerate": _agenerate, "_stream": _stream, "_astream": _astream}
    patcher.leaves(BaseLLM, leaves, late="__pydantic_init_subclass__", kind="model")


def _generate(
    scope: Scope,
    original: Callable[..., Any],
    model: BaseLLM,
    /,
    prompts: list[str],
    stop: Stop = None,
    run_manager: Any = None,
    **options: Any,
) -> LLMResult:
    own = caller(scope)
    with as_model_errors(own):
        requests = [_request(model, prompt, stop, options) for prompt in prompts]
        results = [
            [own.chat(request.call, timeout_s=request.timeout_s) for _ in range(request.answers)]
            for request in requests
        ]
    return _llm_result(requests, results)


async def _agenerate(
    scope: Scope,
    original: Callable[..., Any],
    model: BaseLLM,
    /,
    prompts: list[str],
    stop: Stop = None,
    run_manager: Any = None,
    **options: Any,
) -> LLMResult:
    own = caller(scope)
    with as_model_errors(own):
        requests = [_request(model, prompt, stop, options) for prompt in prompts]
        results = await asyncio.gather(*(_answers(own, request) for request in requests))
    return _llm_result(requests, results)


def _stream(
    scope: Scope,
    original: Callable[..., Any],
    model: BaseLLM,
    /,
    prompt: str,
    stop: Stop = None,
    run_manager: Any = None,
    **options: Any,
) -> Iterator[GenerationChunk]:
    own = caller(scope)
    with as_model_errors(own):
        request = _request(model, prompt, stop, options, n=False)
        with closing(own.stream(request.call, timeout_s=request.timeout_s)) as pieces:
            for piece in pieces:
                chunk = _chunk(piece)
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk


async def _astream(
    scope: Scope,
    original: Callable[..., Any],
    model: BaseLLM,
    /,
    prompt: str,
    stop: Stop = None,
    run_manager: Any = None,
    **options: Any,
) -> AsyncIterator[GenerationChunk]:
    own = caller(scope)
    with as_model_errors(own):
        request = _request(model, prompt, stop, options, n=False)
        async with aclosing(own.astream(request.call, timeout_s=request.timeout_s)) as pieces:
            async for piece in pieces:
                chunk = _chunk(piece)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk


def _request(model: BaseLLM, prompt: str, stop: Stop, options: dict[str, Any], *, n: bool = True) -> ModelRequest:
    return model_request(model, [{"role": "user", "content": prompt}], stop, options, n=n)


async def _answers(own: Scope, request: ModelRequest) -> list[LlmResult]:
    chats = (own.achat(request.call, timeout_s=request.timeout_s) for _ in range(request.answers))
    return list(await asyncio.gather(*chats))


def _llm_result(requests: Sequence[ModelRequest], results: Sequence[Sequence[LlmResult]]) -> LLMResult:
    every = [result for answers in results for result in answers]
    return LLMResult(
        generations=[[Generation(text=result.text, generation_info=_info(result)) for result in r] for r in results],
        llm_output={"token_usage": token_usage(requests[0], every), "model_name": every[0].model} if every else None,
    )


def _chunk(piece: LlmDelta | LlmResult) -> GenerationChunk:
    if isinstance(piece, LlmResult):
        return GenerationChunk(text="", generation_info=_info(piece))
    return GenerationChunk(text=piece.text)


def _info(result: LlmResult) -> dict[str, Any]:
    return {"finish_reason": result.finish_reason, "model_name": result.model}
