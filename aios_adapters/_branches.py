"""Branches: an agent tries several ways at once (tree search, best of n) and gives up those that lose."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar, overload

from aios_adapters._scope import Scope, required
from aios_adapters._sync import in_thread
from aios_kernel.errors import Cancelled

T = TypeVar("T")


class Branch(Generic[T]):
    """One way that is tried: a program of its own below the agent's. Await it for its result.

    Attributes:
        scope: the run of its program.
        task: does its work.
    """

    def __init__(self, scope: Scope, task: asyncio.Task[T]) -> None:
        self.scope = scope
        self.task = task

    @property
    def program(self) -> str:
        """Its program's id, as in `aios ps`."""
        return self.scope.program

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.task.done()

    @property
    def error(self) -> BaseException | None:
        """What it ended with, if that is no result; Cancelled for one that was killed."""
        if not self.task.done():
            return None
        return _killed() if self.task.cancelled() else self.task.exception()

    def result(self) -> T:
        """Its result, once it has ended; raises what it raised, Cancelled for one that was killed."""
        if self.task.cancelled():
            raise _killed()
        return self.task.result()

    def kill(self) -> None:
        """End it now: the model stops within a step and what it held of the KV is free."""
        if not self.task.done():
            self.scope.close(_killed())
            self.task.cancel()

    def __await__(self) -> Generator[Any, None, T]:
        yield from asyncio.wait([self.task]).__await__()
        return self.result()


class Branches:
    """The branches of one agent; see `branches`. `async for` gives them as they end."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._ended: asyncio.Queue[Branch[Any]] = asyncio.Queue()
        self._untold = 0
        self._open: set[Branch[Any]] = set()

    @overload
    def fork(self, work: Callable[..., Awaitable[T]], *args: Any, name: str = ...) -> Branch[T]: ...

    @overload
    def fork(self, work: Callable[..., T], *args: Any, name: str = ...) -> Branch[T]: ...

    def fork(self, work: Callable[..., Any], *args: Any, name: str = "branch") -> Branch[Any]:
        """Start `work(*args)` as a branch; a plain function runs in a thread of its own.

        Its prompts should begin as the agent's own do: what they have in common is computed once.

        Args:
            work: a coroutine function or a plain function, with any framework inside.
            *args: its arguments.
            name: of the branch; it is the agent `parent/name`.
        """
        scope = self.scope.branch(name)
        branch = Branch(scope, asyncio.create_task(_run(scope, work, args), name=f"aios-{name}"))
        self._untold += 1
        self._open.add(branch)
        branch.task.add_done_callback(functools.partial(self._end, branch))
        return branch

    async def first(self, good: Callable[[Any], bool] = bool) -> Branch[Any] | None:
        """The first branch to end with a good result; the others are killed at once.

        A branch that fails is not good. None when no result was good; if every one failed, the first failure is raised.
        """
        failures: list[BaseException] = []
        results = 0
        async for branch in self:
            if branch.error is not None:
                failures.append(branch.error)
                continue
            results += 1
            if good(branch.result()):
                self.kill()
                return branch
        if failures and not results:
            raise failures[0]
        return None

    def kill(self) -> None:
        """End all that have not ended."""
        for branch in [*self._open]:
            branch.kill()

    def __aiter__(self) -> Branches:
        return self

    async def __anext__(self) -> Branch[Any]:
        if not self._untold:
            raise StopAsyncIteration
        branch = await self._ended.get()
        self._untold -= 1
        return branch

    async def close(self) -> None:
        """Kill what has not ended, and wait until it has."""
        left = [branch.task for branch in self._open]
        self.kill()
        await asyncio.gather(*left, return_exceptions=True)

    def _end(self, branch: Branch[Any], task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        branch.scope.close(_killed() if task.cancelled() else error)
        self.scope.forget(branch.scope)
        self._open.discard(branch)
        self._ended.put_nowait(branch)


@contextlib.asynccontextmanager
async def branches() -> AsyncGenerator[Branches]:
    """Let the agent that is on try several ways at once.

        async with aios.branches() as tree:
            for move in moves:
                tree.fork(explore, move)
            winner = await tree.first(lambda found: found.solved)

    Every branch is a program below the agent's: scheduled as one with it, in its group, so that a prompt that begins as
    the agent's own did finds that beginning's KV. Branches that have not ended at the end of the block are killed.

    Raises:
        InvalidRequest: no agent is on.
    """
    tree = Branches(required("branches"))
    try:
        yield tree
    finally:
        await tree.close()


async def _run(scope: Scope, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    with scope.on():
        if inspect.iscoroutinefunction(work):
            return await work(*args)
        result = await in_thread(functools.partial(work, *args))
        return await result if inspect.isawaitable(result) else result


def _killed() -> Cancelled:
    return Cancelled("the branch was given up", fix="keep the `async with aios.branches()` block open for it")
