"""Workflows run in the background of the call that starts them; agents are workflows.

Nothing of `llama_index` is imported here: it is in the middle of its own import when `workflows` arrives.
"""

from __future__ import annotations

import asyncio
from typing import Any

from workflows.workflow import Workflow

from aios_adapters import Scope
from aios_adapters.patching import Patcher
from aios_kernel.errors import AdapterError


def install(patcher: Patcher) -> None:
    """Keep the program running for every workflow that a scope starts."""
    patcher.method(Workflow, "run", _run)


def hold_until_done(scope: Scope, task: asyncio.Task[Any]) -> None:
    """Keep the scope's program running until a task is done."""
    release = scope.hold()
    task.add_done_callback(lambda _task: release())


def _run(scope: Scope, original: Any, workflow: Workflow, /, *args: Any, **kwargs: Any) -> Any:
    handler = original(workflow, *args, **kwargs)
    task = getattr(handler, "_result_task", None)
    if not isinstance(task, asyncio.Task):
        raise AdapterError(
            "the llamaindex adapter cannot tell when a workflow ends: its handler has no `_result_task`",
            fix="aios doctor shows the tested versions; install one of them, or set AIOS_KERNEL=off",
        )
    hold_until_done(scope, task)
    return handler
