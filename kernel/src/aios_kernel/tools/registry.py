"""The tools that the kernel hosts: looked up, checked, and run by what they declare."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, final

from aios_kernel._names import check_text, shown, split_name
from aios_kernel.errors import AiosError, ConfigError, InvalidRequest, NotFound, ToolError, Unsupported
from aios_kernel.syscalls import ToolInvoke, ToolOutput, ToolSpec
from aios_kernel.tools.arguments import ArgumentChecker, decode_arguments
from aios_kernel.tools.effects import EffectGuard, Work, digest_of
from aios_kernel.tools.hosted import Confine, HostedTool
from aios_kernel.tools.journal import EffectId, EffectJournal, Intent, Record
from aios_kernel.tools.runner import TimeLimit, ToolRunner, pause_s
from aios_kernel.tools.slots import Slots
from aios_kernel.tools.source import ToolSource
from aios_kernel.tools.store import ToolStore

_log = logging.getLogger(__name__)


class Caller(NamedTuple):
    """Who calls: the owner of idempotency keys is the agent, turns for places are taken by programs."""

    principal: str = ""
    agent: str = ""
    program: str = ""
    above: tuple[str, ...] = ()
    """The other agents that it runs below, by the outermost name."""


class _Entry(NamedTuple):
    """A tool, its compiled schema and the source that offers it; plugins have none."""

    tool: HostedTool
    checker: ArgumentChecker
    source: str


@final
class ToolRegistry:
    """Hosted tools by name.

    Every call runs on a thread of its own, so that calls of one turn run side by side and a tool that hangs holds up
    nobody. Python cannot end a thread: a call past its limit is answered with `ToolTimeout` and keeps its place among
    those that may run until it returns. (A coroutine is cancelled.)

    Args:
        tools: what the plugins offer.
        store: where effects are recorded; None: nowhere, and a second call with the same key is another call.
        slots: the places that calls run in.
        default_timeout_s: seconds for tools and calls that name no limit.
        sources: where further tools come from, by section of the tools file.
        levels: what gives each isolation level that there is beside `trusted`; called when it is first needed.

    Raises:
        ConfigError: two tools of one name, a name that is none, or a policy that contradicts itself.
        InvalidSchema: parameters that are no JSON schema.
        Unsupported: a tool that needs an isolation level this kernel does not offer.
    """

    def __init__(
        self,
        tools: Iterable[HostedTool] = (),
        *,
        store: ToolStore | None = None,
        slots: Slots | None = None,
        default_timeout_s: float = 300.0,
        sources: Mapping[str, ToolSource] | None = None,
        levels: Mapping[str, Callable[[], Confine]] | None = None,
    ) -> None:
        self._tools: dict[str, _Entry] = {}
        self.has_untrusted = False
        self._default_timeout_s = default_timeout_s
        self._sources = dict(sources or {})
        self._levels = dict(levels or {})
        self._confines: dict[str, Confine] = {}
        self._runner = ToolRunner(slots or Slots())
        self._store = store
        self._journal = EffectJournal(store) if store is not None else None
        self._guard = EffectGuard(self._runner, self._journal) if self._journal is not None else None
        self._left: dict[str, list[Record]] = {}
        self._recoveries: set[asyncio.Task[None]] = set()
        self.offer("", tools)
        for name, source in self._sources.items():
            self.offer(name, source.tools())

    async def start(self) -> None:
        """Let the sources connect, and look after what an earlier kernel left; both go on in the background."""
        if self._journal is not None:
            self._in_background(self._look_back(self._journal))
        for name, source in self._sources.items():
            await source.start(functools.partial(self.offer, name))

    def offer(self, source: str, tools: Iterable[HostedTool]) -> None:
        """Take all tools of a source in the place of those that it had; none if one of them cannot be taken."""
        kept = {name: entry for name, entry in self._tools.items() if entry.source != source}
        for tool in tools:
            entry = self._entry(tool, source)
            if tool.spec.name in kept:
                raise _twice(tool.spec.name, kept[tool.spec.name].source, source)
            kept[tool.spec.name] = entry
        self._tools = kept
        self.has_untrusted = any(entry.tool.untrusted for entry in kept.values())
        self._recover()

    def specs(self) -> list[ToolSpec]:
        """What `tool.list` shows, by name."""
        return [self._tools[name].tool.spec for name in sorted(self._tools)]

    def source(self, section: str) -> ToolSource | None:
        """The source of a section of the tools file, if the file has that section."""
        return self._sources.get(section)

    def tool(self, name: str) -> HostedTool | None:
        """What is declared of a tool, if it is known."""
        entry = self._tools.get(name)
        return entry.tool if entry is not None else None

    def expected_s(self, name: str) -> float | None:
        """How long a tool says that its calls take; None: it does not say, or is unknown."""
        entry = self._tools.get(name)
        return entry.tool.expected_s if entry is not None else None

    def checked(self, name: str, text: str) -> tuple[HostedTool, dict[str, Any]]:
        """A tool and the arguments of a call, held to its schema. Raises NotFound, InvalidRequest."""
        entry = self._tools.get(name)
        if entry is None:
            raise NotFound(f"the kernel hosts no tool {shown(name)}", fix="tool.list names the tools")
        arguments = decode_arguments(name, text)
        entry.checker.check(arguments)
        return entry.tool, arguments

    async def call(self, call: ToolInvoke, caller: Caller = Caller()) -> ToolOutput:  # noqa: B008 - immutable
        """Check the arguments and run a tool, by what it declares.

        Raises:
            NotFound: no such tool.
            InvalidRequest: the arguments do not satisfy the tool's schema, or another call had the key.
            ToolNotStarted: it found no place before its time was over.
            ToolTimeout: the tool did not end in time.
            EffectUnknown: an earlier attempt of this call may have had its effect.
            ToolError: the tool raised; the message is the tool's.
        """
        tool, arguments = self.checked(call.name, call.arguments)
        span = TimeLimit.starting_now(check_timeout(call.timeout_s, tool.timeout_s or self._default_timeout_s))
        if tool.effects == "idempotent" or self._guard is None:
            content = await self._tried(tool, arguments, caller, span)
        else:
            content = await self._guard.call(_work(tool, arguments, call, caller, span))
        return ToolOutput(content=content, untrusted=tool.untrusted)

    async def close(self) -> None:
        """End the sources and wait a moment for running calls; threads that hang end with the process."""
        async with contextlib.AsyncExitStack() as closing:  # one that fails to close must not keep the others open
            if self._store is not None:
                closing.push_async_callback(self._store.close)
            if self._guard is not None:
                closing.push_async_callback(self._guard.close)
            closing.push_async_callback(self._runner.close)
            for source in self._sources.values():
                closing.push_async_callback(source.close)
            for task in self._recoveries:
                task.cancel()
            await asyncio.gather(*self._recoveries, return_exceptions=True)

    async def _tried(self, tool: HostedTool, arguments: dict[str, Any], caller: Caller, span: TimeLimit) -> str:
        """Run a tool as often as its policy says; any failure but the end of its time may be tried again."""
        attempt = 1
        while True:
            try:
                thread = await self._runner.admit(tool, arguments, caller.program, span)
                thread.start()
                return await self._runner.result(thread, tool.spec.name, span)
            except ToolError as error:
                wait_s = pause_s(tool.retry, attempt, span)
                if wait_s is None:
                    raise
                _log.info('tool "%s" is tried again in %g s: %s', tool.spec.name, wait_s, error.message)
                await asyncio.sleep(wait_s)
                attempt += 1

    async def _look_back(self, journal: EffectJournal) -> None:
        try:
            for record in await journal.unfinished():
                self._left.setdefault(record.intent.tool, []).append(record)
        except AiosError as error:
            _log.error("the effects of earlier calls cannot be read: %s", error.message)
        self._recover()

    def _recover(self) -> None:
        """Begin to find out what became of earlier calls, for the tools that are known by now."""
        for name in [name for name in self._left if name in self._tools]:
            for record in self._left.pop(name):
                self._in_background(self._recovered(record, self._tools[name].tool))

    async def _recovered(self, record: Record, tool: HostedTool) -> None:
        assert self._guard is not None
        try:
            arguments = decode_arguments(tool.spec.name, record.intent.arguments or "{}")
            await self._guard.recover(record, tool, arguments)
        except AiosError as error:
            _log.error('a call of tool "%s" that an earlier kernel began is left: %s', tool.spec.name, error.message)

    def _in_background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._recoveries.add(task)
        task.add_done_callback(self._recoveries.discard)

    def _entry(self, tool: HostedTool, source: str) -> _Entry:
        name = tool.spec.name
        try:
            split_name(name, "tool name")
        except InvalidRequest as error:
            raise ConfigError(error.message, fix="mend the plugin or the tools file that offers the tool") from error
        if tool.effects == "queryable" and tool.status is None:
            raise ConfigError(f'tool "{name}" says it is queryable and has no `status`', fix="give it one")
        if tool.isolation != "trusted" and not tool.confined:
            tool = self._confine(tool)
        return _Entry(tool, ArgumentChecker(tool.spec), source)

    def _confine(self, tool: HostedTool) -> HostedTool:
        level = tool.isolation
        if level not in self._confines:
            if level not in self._levels:
                raise Unsupported(
                    f'tool "{tool.spec.name}" needs isolation "{level}", which this kernel does not offer',
                    fix='declare isolation="trusted" if the tool may run inside the kernel, or remove it',
                )
            self._confines[level] = self._levels[level]()
        confined = self._confines[level](tool)
        # A process that the level does not know of would run outside of it.
        return dataclasses.replace(confined, launch=None) if confined.launch is tool.launch else confined


def _work(tool: HostedTool, arguments: dict[str, Any], call: ToolInvoke, caller: Caller, span: TimeLimit) -> Work:
    key = check_text(call.key, "idempotency key") or uuid.uuid4().hex
    intent = Intent(
        id=EffectId(f"{caller.principal}/{caller.agent}", key),
        tool=call.name,
        digest=digest_of(call.name, call.arguments),
        arguments=None if tool.effects == "once" else call.arguments,
        program=caller.program,
        ends_at_s=time.time() + span.limit_s,
    )
    return Work(tool, arguments, intent, span)


def _twice(name: str, *sources: str) -> ConfigError:
    places = " and ".join(f"[{source}]" if source else "a plugin" for source in sources)
    return ConfigError(
        f'a tool "{name}" is offered twice, by {places}',
        fix="rename it in the tools file, or uninstall one of the plugins (aios plugins lists them)",
    )


def check_timeout(asked_s: float | None, default_s: float) -> float:
    """The time limit of a call; raises `InvalidRequest` unless it is a positive number of seconds."""
    if asked_s is None:
        return default_s
    if not 0 < asked_s < float("inf"):
        raise InvalidRequest(f"timeout_s is {asked_s}", fix="give a positive number of seconds, or leave it out")
    return asked_s
