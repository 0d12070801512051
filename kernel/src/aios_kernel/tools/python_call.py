"""Calls one Python function in a process of its own; the call is read from standard input, as JSON.

Its result is printed as the kernel would hand it on. What the function itself prints goes to standard error: progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import json
import sys
from typing import Any


def main() -> int:
    """Run `{"function": "module:name", "arguments": {...}}`; gives the exit status."""
    call = json.load(sys.stdin)
    module, _, path = call["function"].partition(":")
    with contextlib.redirect_stdout(sys.stderr):
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        value = found(**call["arguments"])
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
    from aios_kernel.tools.thread import text_of

    sys.stdout.write(text_of(call["function"], value))
    return 0


if __name__ == "__main__":
    sys.exit(main())
