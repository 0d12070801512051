"""Which implementations of a leaf still run inside a scope, because the model is called further down.

An LLM around another LLM (`StructuredLLM`, a router), an override that adds to `super()`, and OpenAI's class, whose
client is replaced instead: their own code must run, and what they call is rerouted in its turn.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType
from typing import Any

from llama_index.core.base.llms.base import BaseLLM

LEAVES = frozenset(
    {"chat", "complete", "stream_chat", "stream_complete", "achat", "acomplete", "astream_chat", "astream_complete"}
)
_OPENAI = "llama_index.llms.openai.base"
_DEPTH = 4
"""Decorators that are looked through: a span, a callback, a retry, and one of the user's own."""


def delegates(llm: BaseLLM, original: Any) -> bool:
    """Whether this implementation reaches the model through another one."""
    return original.__module__ == _OPENAI or _holds_llm(llm) or _calls_super(original)


def _holds_llm(llm: BaseLLM) -> bool:
    for value in vars(llm).values():
        parts = value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(part, BaseLLM) for part in parts):
            return True
    return False


@functools.lru_cache(maxsize=1024)
def _calls_super(original: Any) -> bool:
    """Whether a method says `super().chat(...)` or the like."""
    # A function that uses `super()` without arguments has `__class__` among its free variables.
    return any(
        "__class__" in function.__code__.co_freevars and not LEAVES.isdisjoint(_names(function.__code__))
        for function in _layers(original, _DEPTH)
    )


def _names(code: CodeType) -> Iterator[str]:
    """The attributes and globals that a function and the functions inside it speak of."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _layers(function: Any, depth: int) -> Iterator[FunctionType]:
    """The function and the functions that its decorators close over."""
    function = getattr(function, "__aios_original__", function)
    if not isinstance(function, FunctionType):
        return
    inner = getattr(function, "__wrapped__", None)
    if callable(inner) and depth:  # `__wrapped__` is only a mark, True, in the framework's callback decorators
        yield from _layers(inner, depth - 1)
        return
    yield function
    for cell in (function.__closure__ or ()) if depth else ():
        if callable(content := _content(cell)):
            yield from _layers(content, depth - 1)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None
