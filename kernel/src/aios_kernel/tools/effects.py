"""Calls whose effects must not happen twice: across retries, second calls with the same key, and kernels that die."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import logging
import time
from typing import Any, NamedTuple, final

from aios_kernel.errors import EffectUnknown, InvalidRequest, ToolError, ToolNotStarted, ToolTimeout
from aios_kernel.tools.hosted import EffectStatus, HostedTool
from aios_kernel.tools.journal import EffectId, EffectJournal, Intent, Record
from aios_kernel.tools.runner import TimeLimit, ToolRunner, no_place, pause_s
from aios_kernel.tools.thread import ToolThread, detached, heard, out_of_time, text_of

_CLOSE_S = 1.0

_log = logging.getLogger(__name__)


class Work(NamedTuple):
    """A call that is to have its effect once.

    Attributes:
        tool: what to run.
        arguments: its checked arguments, without the key.
        intent: what is written down of it.
        span: the time that it may take.
    """

    tool: HostedTool
    arguments: dict[str, Any]
    intent: Intent
    span: TimeLimit

    @property
    def outside_key(self) -> str:
        """The key as the tool gets it."""
        return outside_key(self.intent.id)


@final
class EffectGuard:
    """Runs such calls. Lives on one event loop.

    A call with a key that is known is not run again, but answered like the first; while that one runs, it waits for
    the same end. What became of calls of an earlier kernel is found out by the rule of their tool.
    """

    def __init__(self, runner: ToolRunner, journal: EffectJournal) -> None:
        self._runner = runner
        self._journal = journal
        self._executions: dict[EffectId, _Execution] = {}

    async def call(self, work: Work) -> str:
        """The result of a call.

        Raises:
            InvalidRequest: another call has the same key.
            EffectUnknown: it may have had its effect before, and must not be run again.
            ToolTimeout: it has not ended in time; the same key tells later what became of it.
            ToolError: what the tool raised, now or the first time.
        """
        while (execution := self._executions.get(work.intent.id)) is not None and execution.left:
            await asyncio.wait([execution.task])  # its caller went a moment ago, before it was begun
        if execution is None:
            execution = self._begin(work)
        elif execution.digest != work.intent.digest:
            raise _other_call(work)
        return await execution.wait(work.tool, work.span)

    async def recover(self, record: Record, tool: HostedTool, arguments: dict[str, Any]) -> None:
        """Find out what became of a call of an earlier kernel, while somebody may still wait for it."""
        intent = record.intent
        left_s = intent.ends_at_s - time.time()
        if tool.effects == "once" or left_s <= 0:
            if tool.effects == "once":
                await self._journal.end(intent.id, "unknown", "")
            return
        work = Work(tool, arguments, intent, TimeLimit.starting_now(left_s))
        execution = self._executions.get(intent.id) or self._begin(work)
        try:
            await execution.wait(tool, work.span)
        except ToolError as error:
            _log.info('the call of tool "%s" that an earlier kernel began: %s', tool.spec.name, error.message)

    async def close(self) -> None:
        """Write down what has ended, after the runner was closed; tools that hang leave an intent behind."""
        tasks = [execution.task for execution in self._executions.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, work: Work) -> _Execution:
        execution = _Execution(work.intent.digest)
        execution.task = asyncio.get_running_loop().create_task(self._execute(work, execution))
        self._executions[work.intent.id] = execution

        def over(task: asyncio.Task[str]) -> None:
            self._executions.pop(work.intent.id, None)
            if not task.cancelled():
                task.exception()  # heard, even if nobody waits any more

        execution.task.add_done_callback(over)
        return execution

    async def _execute(self, work: Work, execution: _Execution) -> str:
        record = await self._journal.find(work.intent.id)
        if record is not None:
            if record.intent.digest != work.intent.digest:
                raise _other_call(work)
            answer = await self._settled(work, record)
            if answer is not None:
                return answer
        for attempt in itertools.count(1):
            try:
                return await self._attempt(work, execution)
            except ToolError as error:
                execution.thread = None
                answer = await self._after(work, error, attempt)
            if answer is not None:
                return answer
        raise AssertionError("the count does not end")

    async def _settled(self, work: Work, record: Record) -> str | None:
        """What a call that was begun before is answered; None: it is to run."""
        if record.state == "done":
            return record.content
        if work.tool.effects == "once":
            if record.state == "failed":
                raise ToolError(record.content, fix="make a new call: this one, by its key, has ended")
            if record.state == "begun":
                await self._journal.end(work.intent.id, "unknown", "")
            raise _unknown(work)
        return await self._asked(work) if work.tool.effects == "queryable" else None

    async def _asked(self, work: Work) -> str | None:
        """What a queryable tool says; None: nothing was done. Raises EffectUnknown."""
        assert work.tool.status is not None
        asked = detached(functools.partial(work.tool.status, work.outside_key), f"aios-ask-{work.tool.spec.name}")
        try:
            said: EffectStatus = await asyncio.wait_for(heard(asked), work.span.left_s)
        except Exception as error:  # whatever the tool raises, it has not told
            _log.info('tool "%s" did not tell its status', work.tool.spec.name, exc_info=error)
            raise _unknown(work) from error
        if said.state == "unknown":
            raise _unknown(work)
        if said.state == "not_done":
            return None
        content = text_of(work.tool.spec.name, said.result)
        await self._journal.end(work.intent.id, "done", content)
        return content

    async def _attempt(self, work: Work, execution: _Execution) -> str:
        """One run of the tool: place, intent, run, result. It is over when the tool is, whoever waits."""
        arguments = dict(work.arguments)
        if work.tool.effects in ("keyed", "queryable"):
            arguments["idempotency_key"] = work.outside_key
        thread = await self._runner.admit(work.tool, arguments, work.intent.id.owner, work.span)
        execution.thread, execution.begun = thread, True
        try:
            await self._journal.begin(work.intent)
        except BaseException:
            thread.drop()
            raise
        if thread.abandoned:
            thread.drop()
            raise ToolNotStarted(f'tool "{work.tool.spec.name}" was not begun: nobody waited for it any more')
        thread.start()
        content = await heard(thread.outcome)
        await self._journal.end(work.intent.id, "done", content)
        execution.thread = None
        return content

    async def _after(self, work: Work, error: ToolError, attempt: int) -> str | None:
        """What follows a failure: another attempt (None), a result after all, or the error."""
        id, effects = work.intent.id, work.tool.effects
        if isinstance(error, ToolNotStarted):
            await self._journal.forget(id)
        elif isinstance(error, ToolTimeout) and effects == "once":
            await self._journal.end(id, "unknown", "")
            raise error
        elif effects == "once":
            await self._journal.end(id, "failed", error.message)
            raise error
        wait_s = pause_s(work.tool.retry, attempt, work.span)
        if wait_s is None:
            if not isinstance(error, ToolNotStarted):
                await self._journal.end(id, "failed", error.message)
            raise error
        if effects == "queryable" and not isinstance(error, ToolNotStarted):
            answer = await self._asked(work)
            if answer is not None:
                return answer
        await asyncio.sleep(wait_s)
        return None


@final
class _Execution:
    """A call at work, and those who wait for its end."""

    task: asyncio.Task[str]

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.thread: ToolThread | None = None
        self.begun = False
        self.left = False
        self._waiters = 0

    async def wait(self, tool: HostedTool, span: TimeLimit) -> str:
        """Its result; when the last waiter leaves, so that nobody waits, it is left."""
        self._waiters += 1
        try:
            return await asyncio.wait_for(asyncio.shield(self.task), span.left_s)
        except TimeoutError:
            if self.begun or self._waiters > 1:
                raise out_of_time(tool.spec.name, span.limit_s) from None
            raise no_place(tool.spec.name, span.limit_s, tool.exclusive) from None
        finally:
            self._waiters -= 1
            if not self._waiters and not self.task.done():
                self.leave()

    def leave(self) -> None:
        """Nobody waits: what has not begun does not begin; a coroutine is cancelled, a thread is let run."""
        if self.thread is None:
            self.left = True
            self.task.cancel()
        else:
            self.thread.abandon()


def outside_key(id: EffectId) -> str:
    """The key of a call as tools get it: another one for each owner, and nothing that an agent has made up."""
    return hashlib.sha256("\0".join(id).encode()).hexdigest()[:32]


def digest_of(tool: str, arguments: str) -> bytes:
    """What tells one call from another."""
    return hashlib.sha256(f"{tool}\0{arguments}".encode()).digest()


def _unknown(work: Work) -> EffectUnknown:
    return EffectUnknown(
        f'an earlier attempt of this call of tool "{work.tool.spec.name}" did not come to its end, and may have had '
        "its effect",
        fix="look whether it has; then make a new call if it has not",
    )


def _other_call(work: Work) -> InvalidRequest:
    return InvalidRequest(
        f'the idempotency key of this call of tool "{work.tool.spec.name}" is that of another call',
        fix="give every call a key of its own, or leave it out",
    )
