"""The tools that the kernel hosts: looked up, checked, run within a time limit."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, final

import msgspec

from aios_kernel._names import shown, split_name
from aios_kernel.errors import Busy, ConfigError, InvalidRequest, NotFound, ToolError, ToolTimeout, Unsupported
from aios_kernel.syscalls import ToolInvoke, ToolOutput, ToolSpec
from aios_kernel.tools.arguments import ArgumentChecker, decode_arguments
from aios_kernel.tools.hosted import HostedTool

_MAX_OUTPUT = 16 * 1024 * 1024
_CLOSE_S = 2.0

_log = logging.getLogger(__name__)


class _Entry(NamedTuple):
    tool: HostedTool
    checker: ArgumentChecker


@final
class ToolRegistry:
    """Hosted tools by name.

    Every call runs on a thread of its own, so that calls of one turn run side by side and a tool that hangs holds up
    nobody. Python cannot end a thread: a call past its limit is answered with `ToolTimeout` and keeps its place among
    the `max_running` until it returns. (A coroutine is cancelled.)

    Args:
        tools: what the plugins offer.
        default_timeout_s: seconds for tools and calls that name no limit.
        max_running: calls at a time; beyond it `Busy`.

    Raises:
        ConfigError: two tools of one name, or a name that is none.
        InvalidSchema: parameters that are no JSON schema.
        Unsupported: a tool that needs an isolation level this kernel does not offer.
    """

    def __init__(
        self, tools: Iterable[HostedTool] = (), *, default_timeout_s: float = 300.0, max_running: int = 64
    ) -> None:
        self._tools: dict[str, _Entry] = {}
        self._default_timeout_s = default_timeout_s
        self._max_running = max_running
        self._running: dict[int, threading.Thread] = {}
        for tool in tools:
            self._register(tool)

    def tool(self, name: str) -> HostedTool | None:
        """What is declared of a tool, if it is known."""
        entry = self._tools.get(name)
        return entry.tool if entry is not None else None

    def specs(self) -> list[ToolSpec]:
        """What `tool.list` shows, by name."""
        return [self._tools[name].tool.spec for name in sorted(self._tools)]

    def expected_s(self, name: str) -> float | None:
        """How long a tool says that its calls take; None: it does not say, or is unknown."""
        entry = self._tools.get(name)
        return entry.tool.expected_s if entry is not None else None

    async def call(self, call: ToolInvoke) -> ToolOutput:
        """Check the arguments and run a tool.

        Raises:
            NotFound: no such tool.
            InvalidRequest: the arguments do not satisfy the tool's schema.
            Busy: too many calls are running.
            ToolTimeout: the tool did not end in time.
            ToolError: the tool raised; the message is the tool's.
        """
        entry = self._tools.get(call.name)
        if entry is None:
            raise NotFound(f"the kernel hosts no tool {shown(call.name)}", fix="tool.list names the tools")
        arguments = decode_arguments(call.name, call.arguments)
        entry.checker.check(arguments)
        timeout_s = check_timeout(call.timeout_s, entry.tool.timeout_s or self._default_timeout_s)
        done = self._start(entry.tool, arguments, timeout_s)
        try:
            content = await asyncio.wait_for(asyncio.wrap_future(done), timeout_s)
        except TimeoutError:
            raise _out_of_time(call.name, timeout_s) from None
        return ToolOutput(content=content)

    async def close(self) -> None:
        """Wait a moment for running calls; threads that hang end with the process."""
        await asyncio.to_thread(self._join, time.monotonic() + _CLOSE_S)
        if self._running:
            names = sorted(thread.name for thread in self._running.values())
            _log.warning("%d tool calls still run at the shutdown: %s", len(names), ", ".join(names))

    def _join(self, deadline: float) -> None:
        for thread in list(self._running.values()):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _register(self, tool: HostedTool) -> None:
        name = tool.spec.name
        try:
            split_name(name, "tool name")
        except InvalidRequest as error:
            raise ConfigError(error.message, fix="mend the plugin that offers the tool") from error
        if name in self._tools:
            raise ConfigError(
                f'two plugins offer a tool "{name}"', fix="uninstall one of them (aios plugins lists them)"
            )
        if tool.isolation != "trusted":
            raise Unsupported(
                f'tool "{name}" needs isolation "{tool.isolation}", which this kernel does not offer',
                fix='declare isolation="trusted" if the tool may run inside the kernel, or remove its plugin',
            )
        self._tools[name] = _Entry(tool, ArgumentChecker(tool.spec))

    def _start(self, tool: HostedTool, arguments: Mapping[str, Any], timeout_s: float) -> Future[str]:
        if len(self._running) >= self._max_running:
            raise Busy(
                f"{len(self._running)} hosted tool calls are running, which is the limit",
                fix="wait for some to end",
                retry_after_s=1.0,
            )
        done: Future[str] = Future()
        # A thread of its own, not an executor's: an executor joins its threads at exit and would hang with them.
        thread = threading.Thread(
            target=_run,
            args=(tool, dict(arguments), timeout_s, done, self._ended),
            name=f"aios-tool-{tool.spec.name}",
            daemon=True,
        )
        self._running[id(done)] = thread
        try:
            thread.start()
        except RuntimeError as error:  # the system's limit on threads
            self._ended(done)
            raise Busy(f"no thread for the tool: {error}", fix="wait for calls to end", retry_after_s=1.0) from error
        return done

    def _ended(self, done: Future[str]) -> None:
        self._running.pop(id(done), None)


def check_timeout(asked_s: float | None, default_s: float) -> float:
    """The time limit of a call; raises `InvalidRequest` unless it is a positive number of seconds."""
    if asked_s is None:
        return default_s
    if not 0 < asked_s < float("inf"):
        raise InvalidRequest(f"timeout_s is {asked_s}", fix="give a positive number of seconds, or leave it out")
    return asked_s


def _run(
    tool: HostedTool,
    arguments: dict[str, Any],
    timeout_s: float,
    done: Future[str],
    ended: Callable[[Future[str]], None],
) -> None:
    failure: ToolError | None = None
    content = ""
    try:
        value = tool.run(**arguments)
        if inspect.isawaitable(value):
            value = asyncio.run(_within(value, tool.spec.name, timeout_s))
        content = _text(tool.spec.name, value)
    except ToolError as error:
        failure = error
    except BaseException as error:  # noqa: BLE001 - also SystemExit: a tool may end its call, not the kernel
        _log.info('tool "%s" raised', tool.spec.name, exc_info=error)
        failure = ToolError(f'tool "{tool.spec.name}" failed: {type(error).__name__}: {error}')
    ended(done)
    if not done.set_running_or_notify_cancel():  # the caller has gone
        return
    if failure is not None:
        done.set_exception(failure)
    else:
        done.set_result(content)


async def _within(result: Any, name: str, timeout_s: float) -> object:
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await result
    except TimeoutError:
        if limit.expired():  # the caller's own clock may be a moment behind
            raise _out_of_time(name, timeout_s) from None
        raise


def _out_of_time(name: str, timeout_s: float) -> ToolTimeout:
    return ToolTimeout(f'tool "{name}" did not end within {timeout_s:g} s', fix="raise timeout_s or mend the tool")


def _text(name: str, value: object) -> str:
    """A tool's value as the text that the model reads."""
    if isinstance(value, str):
        text = value
    else:
        try:
            text = msgspec.json.encode(value).decode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ToolError(f'tool "{name}" returned a {type(value).__name__}, which is no JSON: {error}') from error
    if len(text) > _MAX_OUTPUT:
        raise ToolError(f'tool "{name}" returned {len(text):,} characters; the limit is {_MAX_OUTPUT:,}')
    return text
