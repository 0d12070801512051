"""What happens to a model call under `AIOS_KERNEL=passthrough`: a short chat passes the kernel, then the original runs.

The chat takes the whole road (syscall, access, scheduling, accounting, audit) and names the method that was called; its
answer, from the kernel's fake engine, is dropped. So nothing but time differs for the program, whatever the call was.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from aios_kernel.config import load
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling

if TYPE_CHECKING:
    from aios_adapters._scope import Scope


def passes_through() -> bool:
    """Whether the configuration says `passthrough`; for patches that also act outside of scopes."""
    return load().kernel == "passthrough"


def wrapper_for(original: Any, *, counted: bool) -> Callable[..., Any]:
    """A wrapper of the original's kind that only lets it run; `counted`: after its chat."""
    if not counted:
        return _uncounted
    chat = _chat_about(original)
    if inspect.isasyncgenfunction(original):
        return _async_generator(chat)
    if inspect.iscoroutinefunction(original):
        return _coroutine(chat)
    if inspect.isgeneratorfunction(original):
        return _generator(chat)

    def plain(scope: Scope, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if not scope.closed:
            scope.call(chat, LlmResult)
        return original(*args, **kwargs)

    return plain


def _uncounted(scope: Scope, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return original(*args, **kwargs)


def _chat_about(original: Any) -> LlmChat:
    name = getattr(original, "__qualname__", type(original).__qualname__)
    return LlmChat(messages=[Message("user", f"passthrough {name}")], sampling=Sampling(max_tokens=1))


async def _pass(scope: Scope, chat: LlmChat) -> None:
    if scope.closed:
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # another library's loop, such as trio's, which our client does not know
        scope.call(chat, LlmResult)
    else:
        await scope.acall(chat, LlmResult)


def _coroutine(chat: LlmChat) -> Callable[..., Any]:
    async def coroutine(scope: Scope, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        await _pass(scope, chat)
        return await original(*args, **kwargs)

    return coroutine


def _generator(chat: LlmChat) -> Callable[..., Any]:
    def generator(scope: Scope, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if not scope.closed:
            scope.call(chat, LlmResult)
        return (yield from original(*args, **kwargs))

    return generator


def _async_generator(chat: LlmChat) -> Callable[..., Any]:
    async def generator(scope: Scope, original: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        await _pass(scope, chat)
        async with aclosing(original(*args, **kwargs)) as items:
            async for item in items:
                yield item

    return generator
