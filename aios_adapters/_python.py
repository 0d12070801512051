"""The plugin for Python's own ways to leave a context: threads, executors, subprocesses, worker processes.

asyncio's tasks and callbacks carry contexts by themselves; what is started by these would run outside of every agent,
and its calls would pass the kernel by.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

from aios_adapters._handover import PARENT, HandedOver, Passport, environment
from aios_adapters._scope import Scope, current, suspended
from aios_adapters._sync import Worker
from aios_adapters.adapter import Adapter
from aios_adapters.hookspecs import hookimpl
from aios_adapters.patching import Patcher


@hookimpl
def aios_adapter() -> Adapter:
    """The adapter of the standard library."""
    return Adapter(
        name="python",
        tested={},
        hooks={
            "threading": _threads,
            "concurrent.futures.thread": _thread_pools,
            "concurrent.futures.process": _process_pools,
            "subprocess": _subprocesses,
            "multiprocessing.process": _workers,
        },
    )


def _threads(patcher: Patcher) -> None:
    """A thread belongs to the run that started it."""
    import threading

    start = threading.Thread.start

    @functools.wraps(start)
    def in_scope(thread: threading.Thread) -> None:
        scope = current()
        if scope is not None and not isinstance(thread, Worker):  # each of its jobs has a context of its own
            thread.run = functools.partial(_run_in, scope, thread.run)
        start(thread)

    patcher.replace(threading.Thread, "start", in_scope)


def _thread_pools(patcher: Patcher) -> None:
    """What is submitted belongs to the run that submitted it; the pool's threads belong to nobody."""
    from concurrent.futures import Future, ThreadPoolExecutor

    submit, add_callback = ThreadPoolExecutor.submit, Future.add_done_callback

    @functools.wraps(submit)
    def in_scope(pool: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        scope = current()
        if scope is None:
            return submit(pool, fn, *args, **kwargs)
        with suspended():
            return submit(pool, functools.partial(_run_in, scope, fn), *args, **kwargs)

    @functools.wraps(add_callback)
    def called_in_scope(future: Any, fn: Callable[[Any], Any]) -> None:
        scope = current()
        add_callback(future, fn if scope is None else functools.partial(_run_in, scope, fn))

    patcher.replace(ThreadPoolExecutor, "submit", in_scope)
    patcher.replace(Future, "add_done_callback", called_in_scope)


def _process_pools(patcher: Patcher) -> None:
    """As for threads; the worker learns with each call whose it is."""
    from concurrent.futures import ProcessPoolExecutor

    submit = ProcessPoolExecutor.submit

    @functools.wraps(submit)
    def handed_over(pool: ProcessPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        scope = current()
        variables = environment(scope.registered()) if scope is not None else {}
        with suspended():
            return submit(pool, HandedOver(variables, fn) if variables else fn, *args, **kwargs)

    patcher.replace(ProcessPoolExecutor, "submit", handed_over)


def _subprocesses(patcher: Patcher) -> None:
    """A child process finds the run in its environment; asyncio's subprocesses are started here, too."""
    import subprocess

    original = subprocess.Popen.__init__
    signature = inspect.signature(original)
    if "env" not in signature.parameters:
        raise TypeError("subprocess.Popen takes no env")

    @functools.wraps(original)
    def init(process: Any, /, *args: Any, **kwargs: Any) -> None:
        scope = current()
        if scope is None:
            original(process, *args, **kwargs)
            return
        given = signature.bind(process, *args, **kwargs)
        env = given.arguments.get("env")
        if _may_tell(env):
            given.arguments["env"] = {**(os.environ if env is None else env), **environment(scope.registered())}
        original(*given.args, **given.kwargs)

    patcher.replace(subprocess.Popen, "__init__", init)


def _workers(patcher: Patcher) -> None:
    """A process of multiprocessing carries the run in its pickled object (spawn, forkserver) or its memory (fork)."""
    from multiprocessing.process import BaseProcess

    start = BaseProcess.start

    @functools.wraps(start)
    def handed_over(process: Any) -> None:
        scope = current()
        variables = environment(scope.registered()) if scope is not None else {}
        if variables:
            process._aios_run = Passport(variables)
        try:
            start(process)
        finally:
            if variables:
                del process._aios_run

    patcher.replace(BaseProcess, "start", handed_over)


def _run_in(scope: Scope, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    with scope.on():
        return function(*args, **kwargs)


def _may_tell(env: Any) -> bool:
    """Whether a child's environment is ours to add to: not if it was given another run, or the kernel is off for it."""
    if env is None:
        return True
    return env.get(PARENT) in (None, os.environ.get(PARENT)) and env.get("AIOS_KERNEL") != "off"
