"""What a chat engine leaves running when a call has returned: the writers of streamed answers.

Each keeps its program running until it is done.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from llama_index.core.chat_engine.types import BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.types import Thread

from aios_adapter_llamaindex.workflow_runs import hold_until_done
from aios_adapters import Scope
from aios_adapters.patching import Patcher


def install(patcher: Patcher) -> None:
    """Hold the program for threads and for tasks of chat engines."""
    patcher.method(Thread, "__init__", _thread)
    patcher.leaves(BaseChatEngine, {"astream_chat": _astream_chat})


async def _astream_chat(
    scope: Scope, original: Any, engine: BaseChatEngine, /, *args: Any, **kwargs: Any
) -> StreamingAgentChatResponse:
    response = await original(engine, *args, **kwargs)
    task = getattr(response, "awrite_response_to_history_task", None)
    if isinstance(task, asyncio.Task):
        hold_until_done(scope, task)
    return response


def _thread(
    scope: Scope, original: Any, thread: Thread, /, group: Any = None, target: Any = None, *args: Any, **kwargs: Any
) -> None:
    if target is not None:
        target = functools.partial(_run_and_release, scope.hold(), target)
    original(thread, group, target, *args, **kwargs)


def _run_and_release(release: Callable[[], None], target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return target(*args, **kwargs)
    finally:
        release()
