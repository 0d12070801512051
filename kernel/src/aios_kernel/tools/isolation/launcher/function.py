"""Calls one Python function: JSON in on stdin, its result on a descriptor of its own, so that prints do not mix in."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

RESULT = 3
"""The descriptor that takes the result."""


def main() -> int:
    """Read `{"path", "function", "positional", "named"}`, call, write `{"value"}` or `{"error"}`; give a status.

    With `"text"` it writes what the model is to read, and a failure is a status, as of any program.
    """
    with os.fdopen(0, "rb", closefd=False) as file:
        call = json.load(file)
    sys.path[:] = call["path"]
    as_text = call.get("text", False)
    try:
        value = _value(call)
        outcome = _text(value) if as_text else json.dumps({"value": value}, default=_plain)
    except BaseException as error:  # noqa: BLE001 - also SystemExit: it is an outcome as any other
        import traceback

        traceback.print_exc()
        if as_text:
            _flush()
            return 1
        outcome = json.dumps({"error": f"{type(error).__name__}: {error}"})
    _flush()
    with os.fdopen(RESULT, "w", encoding="utf-8", closefd=False) as file:
        file.write(outcome)
    return 0


def _value(call: dict[str, Any]) -> Any:
    module, _, path = call["function"].partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    value = found(*call["positional"], **call["named"])
    if hasattr(value, "__await__"):
        import asyncio  # takes as long as a start of the interpreter

        return asyncio.run(_awaited(value))
    return value


async def _awaited(value: Any) -> Any:
    return await value


def _plain(value: Any) -> Any:
    """Dataclasses, Structs, dates and the like as JSON knows them, the same as for a function in the kernel."""
    import msgspec

    return msgspec.to_builtins(value)


def _text(value: Any) -> str:
    """A value as `aios_kernel.tools.thread.text_of` has it."""
    if isinstance(value, str):
        return value
    import msgspec

    return msgspec.json.encode(value).decode()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue  # the function has closed it
