"""Running the steps of wrapped functions, generators and objects inside a scope.

A scope is switched on around each step (`next`, `send`, `await`) and never across a yield: a ContextVar token is only
valid in the context that made it, and whoever consumes a generator must not find himself inside the agent's scope.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import wrapt

from aios_adapters._scope import Scope

if TYPE_CHECKING:
    from aios_adapters._agent import Runner


@contextmanager
def closing(scope: Scope, new: bool) -> Generator[None]:
    """Close a new scope at the end, with the error that ended it; a consumer that has seen enough is none."""
    try:
        yield
    except GeneratorExit:
        if new:
            scope.close()
        raise
    except BaseException as error:
        if new:
            scope.close(error)
        raise
    if new:
        scope.close()


def wrap_function(function: Callable[..., Any], runner: Runner) -> Any:
    """The function inside a scope, of the same kind as before."""
    if inspect.isasyncgenfunction(function):
        shaped = _async_generator(function, runner)
    elif inspect.iscoroutinefunction(function):
        shaped = _coroutine(function, runner)
    elif inspect.isgeneratorfunction(function):
        shaped = _generator(function, runner)
    else:

        def shaped(*args: Any, **kwargs: Any) -> Any:
            return run(function, runner, *args, **kwargs)

    return functools.update_wrapper(shaped, function)


def _async_generator(function: Callable[..., Any], runner: Runner) -> Callable[..., Any]:
    async def wrapped(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        scope, new = runner.begin()
        source = function(*args, **kwargs)
        steps = source if scope is None else step_async_generator(source, scope, new)
        # `yield from` for async generators: what is sent or thrown in reaches the source.
        step: Callable[[], Awaitable[Any]] = functools.partial(steps.asend, None)
        try:
            while True:
                item = await step()
                try:
                    step = functools.partial(steps.asend, (yield item))
                except GeneratorExit:
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the consumer, meant for the source
                    step = functools.partial(steps.athrow, error)
        except StopAsyncIteration:
            return
        finally:
            await steps.aclose()

    return wrapped


def _coroutine(function: Callable[..., Any], runner: Runner) -> Callable[..., Any]:
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        scope, new = runner.begin()
        if scope is None:
            return await function(*args, **kwargs)
        return await step_coroutine(function(*args, **kwargs), scope, new)

    return wrapped


def _generator(function: Callable[..., Any], runner: Runner) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        scope, new = runner.begin()
        source = function(*args, **kwargs)
        return (yield from (source if scope is None else step_generator(source, scope, new)))

    return wrapped


def wrap_class(cls: type, runner: Runner) -> type:
    """The class itself, its public methods run inside a scope; each outermost call is one run of the agent."""
    for name, member in list(vars(cls).items()):
        if inspect.isfunction(member) and (not name.startswith("_") or name == "__call__"):
            setattr(cls, name, wrap_function(member, runner))
    return cls


def wrap_object(target: Any, runner: Runner) -> Any:
    """A transparent proxy whose methods run inside a scope; `isinstance` and attributes stay as they are."""
    return AgentProxy(target, runner)


class AgentProxy(wrapt.ObjectProxy):  # type: ignore[misc]
    """A built agent under the kernel. Calls made on it are scoped; calls it makes on itself belong to the same run."""

    def __init__(self, target: Any, runner: Runner) -> None:
        super().__init__(target)
        self._self_runner = runner

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if inspect.ismethod(value) and not name.startswith("_"):
            return _scoped_method(value, self._self_runner)
        return value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return run(self.__wrapped__, self._self_runner, *args, **kwargs)

    def __copy__(self) -> Any:
        return AgentProxy(self.__wrapped__, self._self_runner)

    def __deepcopy__(self, memo: Any) -> Any:
        import copy

        return AgentProxy(copy.deepcopy(self.__wrapped__, memo), self._self_runner)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"cannot pickle the agent proxy of {type(self.__wrapped__).__name__}")


def _scoped_method(method: Callable[..., Any], runner: Runner) -> Callable[..., Any]:
    return wrap_function(method, runner)


def run(function: Callable[..., Any], runner: Runner, *args: Any, **kwargs: Any) -> Any:
    """Call a plain function in a scope; what it returns to be awaited or iterated later stays in that scope."""
    scope, new = runner.begin()
    if scope is None:
        return function(*args, **kwargs)
    try:
        with scope.on():
            result = function(*args, **kwargs)
    except BaseException as error:
        if new:
            scope.close(error)
        raise
    return _continued(result, scope, new)


def _continued(result: Any, scope: Scope, new: bool) -> Any:
    """Keep a lazy result in the scope and close the scope when it is used up; close at once for a plain value."""
    if inspect.iscoroutine(result):
        return step_coroutine(result, scope, new)
    if inspect.isasyncgen(result):
        return step_async_generator(result, scope, new)
    if inspect.isgenerator(result):
        return step_generator(result, scope, new)
    if hasattr(result, "add_done_callback"):  # a future or a handler: its task has copied the context
        if new:
            result.add_done_callback(functools.partial(_close_when_done, scope))
        return result
    if new:
        scope.close()
    return result


def _close_when_done(scope: Scope, _future: object) -> None:
    scope.close()


async def step_coroutine(coroutine: Awaitable[Any], scope: Scope, new: bool) -> Any:
    """Await inside the scope; what comes out to be iterated or awaited later stays in it."""
    try:
        with scope.on():
            result = await coroutine
    except BaseException as error:
        if new:
            scope.close(error)
        raise
    return _continued(result, scope, new)


def step_generator(source: Generator[Any, Any, Any], scope: Scope, new: bool) -> Generator[Any, Any, Any]:
    """Drive a generator, each step inside the scope."""
    with closing(scope, new):
        step: Callable[[], Any] = lambda: next(source)  # noqa: E731 - replaced in the loop
        try:
            while True:
                try:
                    with scope.on():
                        item = step()
                except StopIteration as stop:
                    return stop.value
                try:
                    sent = yield item
                    step = functools.partial(source.send, sent)
                except GeneratorExit:
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the consumer, meant for the source
                    step = functools.partial(source.throw, error)
        finally:
            with scope.on():
                source.close()


async def step_async_generator(source: AsyncGenerator[Any, Any], scope: Scope, new: bool) -> AsyncGenerator[Any, Any]:
    """Drive an async generator, each step inside the scope."""
    with closing(scope, new):
        step: Callable[[], Awaitable[Any]] = functools.partial(source.asend, None)
        try:
            while True:
                try:
                    with scope.on():
                        item = await step()
                except StopAsyncIteration:
                    return
                try:
                    sent = yield item
                    step = functools.partial(source.asend, sent)
                except GeneratorExit:
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the consumer, meant for the source
                    step = functools.partial(source.athrow, error)
        finally:
            with scope.on():
                await source.aclose()
