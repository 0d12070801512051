"""LangGraph's background threads: what a run submits belongs to the scope that the run was started in.

A node's writes are submitted by whoever learns first that the node is done. Often that is the node's own thread, after
it has left the node's context: without this hook those writes would pass the kernel by.
"""

from __future__ import annotations

import functools
from typing import Any

from aios_adapters._scope import current
from aios_adapters.patching import Patcher

_SCOPE = "_aios_scope"


def install(patcher: Patcher) -> None:
    """Hook the executor of blocking runs; that of asynchronous ones keeps the context by itself."""
    from langgraph.pregel._executor import BackgroundExecutor

    init, submit = BackgroundExecutor.__init__, BackgroundExecutor.submit

    @functools.wraps(init)
    def remembering(executor: Any, *args: Any, **kwargs: Any) -> None:
        init(executor, *args, **kwargs)
        setattr(executor, _SCOPE, current())

    @functools.wraps(submit)
    def in_scope(executor: Any, *args: Any, **kwargs: Any) -> Any:
        scope = getattr(executor, _SCOPE, None)
        if scope is None or current() is not None:
            return submit(executor, *args, **kwargs)
        with scope.on():  # the executor runs what is submitted in a copy of this context
            return submit(executor, *args, **kwargs)

    patcher.replace(BackgroundExecutor, "__init__", remembering)
    patcher.replace(BackgroundExecutor, "submit", in_scope)
