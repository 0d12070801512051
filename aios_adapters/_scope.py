"""Scopes: one run of an agent, and the only road on which an adapter reaches the kernel.

One ContextVar says which agent is on. Adapters ask `current()`; everything they may do is a method of `Scope`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import logging
import os
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any, TypeVar

import msgspec

from aios_adapters._kernel import KernelLink
from aios_adapters._options import AgentOptions, ToolLimit
from aios_adapters._sync import in_thread
from aios_adapters._tool_run import ToolRun
from aios_kernel import errors
from aios_kernel.client import Client, Connection
from aios_kernel.syscalls import (
    AgentExit,
    AgentSpawn,
    KernelInfo,
    LlmChat,
    LlmDelta,
    LlmResult,
    Result,
    Syscall,
    ToolBegin,
    ToolEnd,
    ToolGrant,
)

T = TypeVar("T")
R = TypeVar("R", bound=Result)
_log = logging.getLogger("aios_adapters")

_SHARED: dict[str, Any] = {"budget": None, "deadline": None, "tools": None}
"""What the agents inside a run have no limits of their own for: the kernel holds them to those of the run."""

_NO_LIMIT = ToolLimit()

_current: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("aios_scope")
_process_scope: Scope | None = None
"""The run of another process that this one was started in."""


def current() -> Scope | None:
    """The scope that is on in this context, or None."""
    return _current.get(_process_scope)


def set_process_scope(scope: Scope | None) -> None:
    """The scope of every context in which none was switched on or off."""
    global _process_scope
    _process_scope = scope


def required(what: str) -> Scope:
    """The scope that is on, for what only an agent can do. Raises InvalidRequest outside of every agent."""
    scope = current()
    if scope is None:
        raise errors.InvalidRequest(
            f"{what} needs an agent, and none is on here",
            fix="call it inside a function decorated with @aios.agent (and do not set AIOS_KERNEL=off)",
        )
    return scope


@contextlib.contextmanager
def suspended() -> Generator[None]:
    """No scope is on inside: originals that an adapter calls on purpose are not rerouted again.

    Must not span a `yield` of a generator; in a generator suspend around each step.
    """
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


class Scope:
    """One run (program) of an agent. It registers itself with the kernel at its first syscall."""

    def __init__(self, options: AgentOptions, link: KernelLink, parent: Scope | None = None) -> None:
        self.options = options
        self.parent = parent
        self.program = uuid.uuid4().hex[:16]
        self.framework = options.framework
        """The adapter that made the scope's first call, when the options name none."""
        self.run_of = options
        """Options of the agent whose run this is, or is a branch of."""
        self._link = link
        self._pid = os.getpid()
        self._forked_from: str | None = None
        self._began_s = time.monotonic()
        self._lora: str | None = options.lora or (parent._lora if parent else None)
        self._models: dict[str | None, str] = dict(parent._models) if parent is not None else {}
        self._models.update(options.models or {})
        self._tool_limits: dict[str, ToolLimit] = dict(parent._tool_limits) if parent is not None else {}
        self._tool_limits.update(options.tool_limits or {})
        self._known_on: Connection | None = None
        self._children: dict[str, Scope] = {}
        # Re-entrant: a generator that the garbage collector closes may release its hold in the middle of anything.
        self._lock = threading.RLock()
        self._spawned_on: Connection | None = None
        self._spawned_as = ""
        self._holds = 0
        self._over = False
        self._closed = False

    @property
    def link(self) -> KernelLink:
        """The link to the kernel, with the configuration it was made from."""
        return self._link

    @property
    def passthrough(self) -> bool:
        """Whether calls pass the kernel and their originals run all the same (`AIOS_KERNEL=passthrough`)."""
        return self._link.config.kernel == "passthrough"

    @property
    def begun(self) -> bool:
        """Whether a kernel has heard of the run."""
        return self._spawned_on is not None

    @property
    def closed(self) -> bool:
        """Whether the run has ended."""
        return self._closed

    def registered(self) -> Scope:
        """This scope, once the kernel knows its program: whoever is told of it may ask for it at once."""
        self._ensure_spawned()
        # The spawn was sent without waiting, and calls that come by another connection do not queue behind it; any
        # answer on this one says that it was heard.
        if self._known_on is not self._spawned_on:
            self._link.client().call(KernelInfo(), program=self.program)
            self._known_on = self._spawned_on
        return self

    def lasting_options(self) -> dict[str, Any]:
        """What a part of the run in another process must be told, because it is not the kernel that applies it."""
        told = {"memory": self.options.memory, "lora": self._lora, "models": dict(self._models) or None}
        return {name: value for name, value in told.items() if value is not None}

    @property
    def agent(self) -> str:
        """The agent's full name; a framework's own agents are `parent/child`."""
        own = self.options.name.replace("/", "_")
        return f"{self.parent.agent}/{own}" if self.parent else own

    def child(self, name: str | None, framework: str) -> Scope:
        """The scope of a framework's own agent inside this one; this scope itself if the name says nothing new."""
        if not name or name == self.options.name:
            return self
        with self._lock:
            scope = self._children.get(name)
            if scope is None:
                options = dataclasses.replace(self.options, name=name, framework=framework, **_SHARED)
                scope = self._children[name] = Scope(options, self._link, self)
            return scope

    def branch(self, name: str) -> Scope:
        """A new program below this one, which whoever asked for it closes; it ends with this one at the latest."""
        options = dataclasses.replace(self.options, name=name, framework=self.framework, **_SHARED)
        scope = Scope(options, self._link, self)
        scope.run_of = self.run_of
        with self._lock:
            self._children[scope.program] = scope
        return scope

    def forget(self, branch: Scope) -> None:
        """Let go of a branch that has ended."""
        with self._lock:
            for key in [key for key, scope in self._children.items() if scope is branch]:
                del self._children[key]

    def has_child(self, name: str) -> bool:
        """Whether a framework's own agent of this name has run inside this scope."""
        with self._lock:
            return name in self._children

    @contextlib.contextmanager
    def on(self) -> Generator[Scope]:
        """Switch this scope on. Never let a generator's `yield` fall inside: step it with `on()` around each step."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)

    def hold(self) -> Callable[[], None]:
        """Keep the program running after its function has returned, until what this gives back is called.

        For what a framework leaves running in the background (a workflow's task, a stream that is read later).
        """
        release_parent = self.parent.hold() if self.parent is not None else None
        with self._lock:
            self._holds += 1
        held = True

        def release() -> None:
            nonlocal held
            with self._lock:
                if not held:
                    return
                held = False
                self._holds -= 1
                due = self._over and not self._holds
            if due:
                self.close()
            if release_parent is not None:
                release_parent()

        return release

    def close(self, error: BaseException | None = None) -> None:
        """End the program and its children; the kernel frees what they hold.

        A program that something still holds ends when the last hold is released, unless an error ends it.
        """
        with self._lock:
            if self._closed:
                return
            if error is None and self._holds:
                self._over = True
                return
            self._closed = True
            children = list(self._children.values())
        for scope in children:
            scope.close(error)
        text = f"{type(error).__name__}: {error}"[:500] if error is not None else None
        self._post(AgentExit(error=text))

    # --- syscalls ---------------------------------------------------------------------------------------------------

    def call(self, call: Syscall, answer: type[R], *, timeout_s: float | None = None) -> R:
        """Run a syscall, blocking; gives its result, checked to be an `answer`."""
        self._ensure_spawned()
        return _checked(self._link.client().call(call, program=self.program, timeout_s=timeout_s), answer)

    async def acall(self, call: Syscall, answer: type[R], *, timeout_s: float | None = None) -> R:
        """Run a syscall; gives its result, checked to be an `answer`."""
        await self._aensure_spawned()
        client = self._link.async_client()
        return _checked(await client.call(call, program=self.program, timeout_s=timeout_s), answer)

    def chat(self, call: LlmChat, *, timeout_s: float | None = None) -> LlmResult:
        """Ask the model, blocking."""
        prepared = self._prepared(call)
        return self._observed(prepared, self.call(prepared, LlmResult, timeout_s=timeout_s))

    async def achat(self, call: LlmChat, *, timeout_s: float | None = None) -> LlmResult:
        """Ask the model; cancelling the task stops the generation."""
        prepared = self._prepared(call)
        return self._observed(prepared, await self.acall(prepared, LlmResult, timeout_s=timeout_s))

    def stream(self, call: LlmChat, *, timeout_s: float | None = None) -> Generator[LlmDelta | LlmResult]:
        """Ask the model and yield `LlmDelta`s, at last the `LlmResult`; closing the generator stops the model."""
        self._ensure_spawned()
        prepared = self._prepared(call, stream=True)
        source = self._link.client().stream(prepared, program=self.program, timeout_s=timeout_s)
        with contextlib.closing(source) as items:
            for item in items:
                yield self._observed(prepared, item) if isinstance(item, LlmResult) else item

    async def astream(self, call: LlmChat, *, timeout_s: float | None = None) -> AsyncGenerator[LlmDelta | LlmResult]:
        """Like `stream`, for asyncio."""
        await self._aensure_spawned()
        prepared = self._prepared(call, stream=True)
        source = self._link.async_client().stream(prepared, program=self.program, timeout_s=timeout_s)
        async with contextlib.aclosing(source) as items:
            async for item in items:
                yield self._observed(prepared, item) if isinstance(item, LlmResult) else item

    def run_tool(self, name: str, arguments: str, run: Callable[[], T], *, call_id: str | None = None) -> T:
        """Run a tool of the agent's process under a grant: `tool.begin`, `run()`, `tool.end`.

        `arguments` is the JSON text of the call. Raises AccessDenied when the kernel refuses, ToolTimeout when the
        grant's time has passed (the tool's thread cannot be killed and is abandoned), else what `run` raises.
        """
        begin = self._begin(name, arguments, call_id)
        if self.passthrough:  # in the thread where it would run without us
            return self._run_here(self.call(begin, ToolGrant), run)
        self._ensure_spawned()
        job = ToolRun(run, self._give_back)
        cancel = self._link.client().start(begin, job.answered, program=self.program)
        try:
            result = job.wait(lambda grant: self.late(name, grant))
        except BaseException as error:
            job.drop()
            if job.grant is None:
                cancel()
            else:
                self._tool_failed(job.grant, error)
            raise
        assert job.grant is not None
        self._post(ToolEnd(grant=job.grant.grant, result_bytes=_size(result)))
        return result

    def _run_here(self, grant: ToolGrant, run: Callable[[], T]) -> T:
        try:
            result = run()
        except BaseException as error:
            self._tool_failed(grant, error)
            raise
        self._post(ToolEnd(grant=grant.grant, result_bytes=_size(result)))
        return result

    async def arun_tool(
        self,
        name: str,
        arguments: str,
        run: Callable[[], Awaitable[T]],
        *,
        call_id: str | None = None,
        timeout_s: float | None = None,
    ) -> T:
        """Like `run_tool`, for a tool that is awaited; at its time limit it is cancelled.

        `timeout_s` is asked for in place of the kernel's `tool_timeout_s`; a shorter limit of the tools file holds.
        """
        grant = await self.acall(self._begin(name, arguments, call_id, timeout_s), ToolGrant)
        limit = asyncio.timeout(grant.timeout_s)
        try:
            async with limit:
                result = await run()
        except TimeoutError as error:
            failure = self.late(name, grant) if limit.expired() else error
            self._tool_failed(grant, failure)
            raise failure from error
        except BaseException as error:
            self._tool_failed(grant, error)
            raise
        self._post(ToolEnd(grant=grant.grant, result_bytes=_size(result)))
        return result

    def late(self, name: str, grant: ToolGrant) -> errors.ToolTimeout:
        """The error of a tool that did not end within its grant's time."""
        if grant.run_s is not None:
            what, fix = f"by the run's deadline of {grant.run_s:g} s", "raise deadline= of the decorator"
        else:
            what = f"within {grant.timeout_s:g} s"
            fix = "raise tool_timeout_s in aios.toml (or AIOS_TOOL_TIMEOUT_S), or make the tool faster"
        return errors.ToolTimeout(f'tool "{name}" did not end {what}', agent=self.agent, syscall="tool.begin", fix=fix)

    def _begin(self, name: str, arguments: str, call_id: str | None, timeout_s: float | None = None) -> ToolBegin:
        limit = self._tool_limits.get(name, _NO_LIMIT)
        return ToolBegin(name, arguments, call_id, timeout_s, max_running=limit.max_running, exclusive=limit.exclusive)

    def _give_back(self, grant: ToolGrant) -> None:
        """End a grant that came when nobody waited for it any more; it may hold a place."""
        self._post(ToolEnd(grant=grant.grant, ok=False, error="the caller had gone"))

    def _tool_failed(self, grant: ToolGrant, error: BaseException) -> None:
        self._post(ToolEnd(grant=grant.grant, ok=False, error=f"{type(error).__name__}: {error}"[:500]))

    def _post(self, call: AgentExit | ToolEnd) -> None:
        """Tell the kernel that knows this program; one that is gone, or the parent process's, is told nothing."""
        connection = self._spawned_on if self._pid == os.getpid() else None
        if connection is not None and connection.alive:
            with contextlib.suppress(errors.KernelUnavailable):
                Client(connection).post(call, program=self.program)

    def _prepared(self, call: LlmChat, *, stream: bool = False) -> LlmChat:
        return self._link.prepare(self.agent, self.framework, self._with_options(call), stream=stream)

    def _with_options(self, call: LlmChat) -> LlmChat:
        if call.lora is None and self._lora is not None:
            call = msgspec.structs.replace(call, lora=self._lora)
        if call.model in self._models:
            call = msgspec.structs.replace(call, model=self._models[call.model])
        return call

    def _observed(self, call: LlmChat, result: LlmResult) -> LlmResult:
        if result.window is not None:
            cut = result.window
            _log.warning(
                "agent %s: %d messages (%d tokens) did not fit the model's window: %s",
                self.agent, cut.dropped_messages, cut.dropped_tokens, cut.strategy,
            )  # fmt: skip
        return self._link.observed(self.agent, self.options.framework, call, result)

    def _ensure_spawned(self) -> None:
        if self._closed:
            raise errors.Cancelled(
                "the agent's run has ended", agent=self.agent, fix="call it inside the decorated function"
            )
        if self._pid != os.getpid():
            self._continue_in_fork()
        if not self._link.connected():
            with suspended():  # a kernel that is started here is no part of the run
                self._link.connect()
        connection = self._link.connect()
        if self._spawned_on is connection and self._spawned_as == self.framework:
            return
        if self.parent is not None and self._forked_from is None:
            self.parent._ensure_spawned()
        with self._lock:
            if self._spawned_on is connection and self._spawned_as == self.framework:
                return
            if self._spawned_on is not None and self._spawned_on is not connection:
                # Its program ended with the connection: this is another run.
                self.program = uuid.uuid4().hex[:16]
            # A second time when the framework came to light after the first syscall (a message, a note).
            self._link.client().post(self._spawn(), program=self.program)
            self._spawned_on, self._spawned_as = connection, self.framework

    def _continue_in_fork(self) -> None:
        """In a forked child: what it does is a program of its own, a child of the one it was forked from."""
        self._pid, self._lock = os.getpid(), threading.RLock()
        self._forked_from = self.program if self._spawned_on is not None else None
        self.program = uuid.uuid4().hex[:16]
        self._spawned_on, self._spawned_as = None, ""
        self._children = {}

    async def _aensure_spawned(self) -> None:
        if self._link.connected():
            self._ensure_spawned()
            return
        # Starting a kernel takes seconds: not on the event loop, and in no executor, which may be full of tools that
        # wait for this very agent, or make a cancelled caller wait for the start.
        await in_thread(self._ensure_spawned)

    def _spawn(self) -> AgentSpawn:
        options = self.options
        left_s = None if options.deadline is None else max(0.0, options.deadline + self._began_s - time.monotonic())
        return AgentSpawn(
            program=self.program,
            agent=self.agent,
            framework=self.framework,
            priority=options.priority,
            group=options.group,
            parent=self._forked_from or (self.parent.program if self.parent else None),
            window=options.window,
            budget=options.budget,
            deadline_s=left_s,
            run_s=options.deadline,
            tools=None if options.tools is None else list(options.tools),
        )


def _checked(result: Result, answer: type[R]) -> R:
    if not isinstance(result, answer):
        raise errors.ProtocolError(f"the kernel answered {type(result).__name__} where {answer.__name__} was due")
    return result


def _size(result: Any) -> int:
    return len(result) if isinstance(result, str | bytes) else 0
