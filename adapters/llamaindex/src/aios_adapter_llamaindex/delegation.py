"""Which implementations of a leaf still run inside a scope, because the model is called further down.

An LLM around another LLM (`StructuredLLM`, a router), an override that adds to `super()`, and OpenAI's class, whose
client is replaced instead: their own code must run, and what they call is rerouted in its turn.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from llama_index.core.base.llms.base import BaseLLM

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
    # A function that uses `super()` without arguments has `__class__` among its free variables.
    return any("__class__" in function.__code__.co_freevars for function in _layers(original, _DEPTH))


def _layers(function: Any, depth: int) -> Iterator[FunctionType]:
    """The function and the functions that its decorators close over."""
    function = getattr(function, "__aios_original__", function)
    inner = getattr(function, "__wrapped__", None)
    if not isinstance(function, FunctionType):
        return
    if callable(inner) and depth:  # `__wrapped__` is only a mark, True, in the framework's callback decorators
        yield from _layers(inner, depth - 1)
        return
    yield function
    for cell in (function.__closure__ or ()) if depth else ():
        if callable(cell.cell_contents):
            yield from _layers(cell.cell_contents, depth - 1)
