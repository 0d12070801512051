"""The life of one long job: a place, a process, its end, and what follows when that left no word."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TypeAlias, final

import msgspec

from aios_kernel.errors import AiosError, Cancelled, EffectUnknown, ToolError, ToolNotStarted, ToolTimeout, Unsupported
from aios_kernel.syscalls import ToolJob
from aios_kernel.tools.effects import outside_key
from aios_kernel.tools.hosted import HostedTool
from aios_kernel.tools.job_process import MAX_BYTES, JobExit, JobProcess
from aios_kernel.tools.job_table import JobRow, JobTable
from aios_kernel.tools.journal import EffectId
from aios_kernel.tools.registry import ToolRegistry
from aios_kernel.tools.slots import Demand, Slots
from aios_kernel.tools.thread import detached, heard, text_of

_POLL_S = 0.1
_LOOK_S = 2.0
"""How often a process is looked at that makes itself heard when it ends."""

_End: TypeAlias = JobExit | AiosError | None
"""How a run ended; None: nothing of it ran, or it may run again."""


@final
class JobLife:
    """A job that has not ended, at work on one event loop. `work` is its life; the others look at it or hurry it."""

    def __init__(self, row: JobRow, registry: ToolRegistry, slots: Slots, table: JobTable, folder: Path) -> None:
        self.row = row
        self._registry = registry
        self._slots = slots
        self._table = table
        self._folder = folder
        self._waiting: set[asyncio.Future[None]] = set()
        tool = registry.tool(row.tool)
        limits = (tool.max_running, tool.exclusive) if tool is not None else (None, None)
        self._demand = Demand(f"hosted {row.tool}", *limits, pool="job")

    async def work(self) -> None:
        """Until the end of the job is written down. Cancelling this leaves the job's process alone."""
        end: _End = None
        try:
            if self.row.state == "running":
                end = await self._go_on()
            while end is None:
                end = await self._run()
        except AiosError as error:
            end = error
        await self._finish(end)

    async def cancel(self) -> None:
        """Let it end soon; durable on return."""
        self.row.cancelled = True
        await self._table.update(self.row)
        self._wake()

    async def changed(self, seconds: float | None) -> None:
        """Return when something has changed, or after so many seconds."""
        change = self._change()
        try:
            await asyncio.wait([change], timeout=seconds)
        finally:
            self._waiting.discard(change)

    # --- runs -------------------------------------------------------------------------------------------------------

    async def _go_on(self) -> _End:
        """With the run that an earlier kernel began."""
        self._slots.hold(self._demand)
        try:
            return await self._watched(process_of(self._folder, self.row))
        finally:
            self._slots.give(self._demand)

    async def _run(self) -> _End:
        tool, arguments = self._registry.checked(self.row.tool, self.row.arguments)
        if tool.launch is None:
            raise Unsupported(f'tool "{self.row.tool}" cannot be a long job any more', fix="mend the tools file")
        if tool.effects in ("keyed", "queryable"):
            arguments["idempotency_key"] = self._key
        await self._admitted()
        try:
            self.row.state, self.row.attempt, self.row.started_s = "running", self.row.attempt + 1, time.time()
            await self._table.update(self.row)
            self._wake()
            process = process_of(self._folder, self.row)
            await asyncio.to_thread(process.start, tool.launch(arguments), self.row.timeout_s)
            return await self._watched(process)
        finally:
            self._slots.give(self._demand)

    async def _admitted(self) -> None:
        """Wait for a place. Raises Cancelled when the job is not wanted any more."""
        place = asyncio.ensure_future(self._slots.take(self._demand, self.row.program))
        try:
            while not self.row.cancelled:
                change = self._change()
                await asyncio.wait([place, change], return_when=asyncio.FIRST_COMPLETED)
                self._waiting.discard(change)
                if place.done():
                    return
            raise _cancelled(self.row)
        except BaseException:
            place.cancel()
            await asyncio.gather(place, return_exceptions=True)
            if not place.cancelled():
                self._slots.give(self._demand)
            raise

    async def _watched(self, process: JobProcess) -> _End:
        asked = False
        with process.watched(self._wake) as watched:
            while (exit := process.exit()) is None and process.alive:
                if self.row.cancelled and not asked:
                    asked = process.cancel()
                await self.changed(_LOOK_S if watched and asked == self.row.cancelled else _POLL_S)
        exit = exit or process.exit()
        if exit is not None:
            return exit
        if self.row.cancelled:
            return _cancelled(self.row)
        return None if process.give_up() else await self._vanished(process)

    async def _vanished(self, process: JobProcess) -> _End:
        """A process had begun and is gone, without a word: by the rule of its tool."""
        tool = self._registry.tool(self.row.tool)
        if tool is not None and tool.effects in ("idempotent", "keyed"):
            return None
        if tool is not None and tool.effects == "queryable":
            return await self._asked(tool, process)
        return _unknown(self.row)

    async def _asked(self, tool: HostedTool, process: JobProcess) -> _End:
        assert tool.status is not None
        status = tool.status
        try:
            said = await heard(detached(lambda: status(self._key), f"aios-ask-{self.row.tool}"))
        except Exception as error:  # noqa: BLE001 - whatever the tool raises, it has not told
            return ToolError(f"{_unknown(self.row).message} (asked, it failed: {error})")
        if said.state == "done":
            await asyncio.to_thread(process.keep, text_of(self.row.tool, said.result))
            now = time.time()
            return JobExit(0, "exited", "", self.row.started_s or now, now)
        return None if said.state == "not_done" else _unknown(self.row)

    async def _finish(self, end: JobExit | AiosError) -> None:
        error = end if isinstance(end, AiosError) else _failure(self.row, end)
        ended = msgspec.structs.replace(
            self.row,
            state="done" if error is None else "cancelled" if isinstance(error, Cancelled) else "failed",
            ended_s=end.ended_s if isinstance(end, JobExit) else time.time(),
            code=error.code if error is not None else "",
            error=error.message if error is not None else "",
        )
        await self._table.update(ended)
        self.row = ended  # nobody hears of the end before it is durable
        self._wake()

    @property
    def _key(self) -> str:
        return outside_key(EffectId(f"{self.row.principal}/{self.row.agent}", self.row.key))

    def _change(self) -> asyncio.Future[None]:
        """Done when something changes from now on."""
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(change)
        return change

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for change in waiting:
            change.set_result(None)


def process_of(folder: Path, row: JobRow) -> JobProcess:
    """The process of a job's last run."""
    return JobProcess(folder / row.id / str(row.attempt))


def told(row: JobRow, **more: object) -> ToolJob:
    """A job as callers see it."""
    return ToolJob(
        job=row.id,
        tool=row.tool,
        state=row.state,
        agent=row.agent,
        program=row.program,
        submitted_s=row.submitted_s,
        started_s=row.started_s,
        ended_s=row.ended_s,
        code=row.code,
        error=row.error,
        **more,  # type: ignore[arg-type]
    )


def _failure(row: JobRow, exit: JobExit) -> AiosError | None:
    """The error of a process that did not end well."""
    if exit.reason == "cancelled":
        return _cancelled(row)
    if exit.reason == "timeout":
        return ToolTimeout(f'the job of tool "{row.tool}" did not end within {row.timeout_s:g} s')
    if exit.reason == "too_much":
        return ToolError(f'the job of tool "{row.tool}" printed more than {MAX_BYTES:,} bytes')
    if exit.reason == "not_started":
        return ToolNotStarted(f'the job of tool "{row.tool}" could not be started: {exit.error}')
    if exit.status:
        return ToolError(f'the job of tool "{row.tool}" ended with status {exit.status}')
    return None


def _cancelled(row: JobRow) -> Cancelled:
    return Cancelled(f'the job of tool "{row.tool}" was cancelled')


def _unknown(row: JobRow) -> EffectUnknown:
    return EffectUnknown(
        f'the process of this job of tool "{row.tool}" vanished without a word; it may have had its effect',
        fix="look whether it has; then submit a new job if it has not",
    )
