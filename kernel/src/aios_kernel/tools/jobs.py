"""Long jobs: submitted, watched, cancelled, and found again by the next kernel."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from pathlib import Path
from typing import final

from aios_kernel._names import check_text
from aios_kernel.errors import AiosError, Unsupported
from aios_kernel.syscalls import ToolJob, ToolSubmit, ToolWait
from aios_kernel.tools.effects import digest_of
from aios_kernel.tools.job_life import JobLife, process_of, told
from aios_kernel.tools.job_process import JobProcess
from aios_kernel.tools.job_table import JobRow, JobTable
from aios_kernel.tools.registry import Caller, ToolRegistry, check_timeout
from aios_kernel.tools.slots import Slots
from aios_kernel.tools.store import ToolStore

_DEFAULT_TIMEOUT_S = 24 * 3600.0
_POLL_S = 0.1
_PRUNE_S = 3600.0

_log = logging.getLogger(__name__)


@final
class JobManager:
    """The long jobs of one data directory. Lives on one event loop.

    A job is written down before anything of it runs, and its process writes down how it ends; so a kernel that starts
    knows of every job, and starts none a second time. What became of a job whose process vanished without a word (the
    machine went down) is found out by the tool's effect rule.

    Args:
        registry: the tools.
        store: their database.
        slots: the places, shared with calls.
        folder: where jobs have their files.
    """

    def __init__(self, registry: ToolRegistry, store: ToolStore, slots: Slots, folder: Path) -> None:
        self._registry = registry
        self._table = JobTable(store)
        self._slots = slots
        self._folder = folder
        self._lives: dict[str, JobLife] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._finding: asyncio.Task[None] | None = None
        self._prune_at = 0.0

    def start(self) -> None:
        """Find the jobs of earlier kernels, in the background."""
        if self._table.exists:
            self._finding = asyncio.get_running_loop().create_task(self._find())

    async def submit(self, call: ToolSubmit, caller: Caller) -> ToolJob:
        """Write a job down, and begin it when there is a place; the same key gives the same job.

        Raises:
            NotFound: no such tool.
            Unsupported: it cannot run as a process of its own.
            InvalidRequest: the arguments do not satisfy its schema, or another job has the key.
        """
        tool, _ = self._registry.checked(call.name, call.arguments)
        if tool.launch is None:
            raise Unsupported(
                f'tool "{call.name}" cannot be a long job: it has no process of its own',
                fix="call it, or make it a command or a function of the tools file",
            )
        await self._found()
        row = JobRow(
            id=uuid.uuid4().hex[:16],
            principal=caller.principal,
            agent=caller.agent,
            program=caller.program,
            key=check_text(call.key, "idempotency key") or uuid.uuid4().hex,
            tool=call.name,
            digest=digest_of(call.name, call.arguments),
            arguments=call.arguments,
            timeout_s=check_timeout(call.timeout_s, tool.timeout_s or _DEFAULT_TIMEOUT_S),
            submitted_s=time.time(),
            above=[*caller.above],
        )
        known = await self._table.add(row)
        if known is row:
            self._begin(row)
        return told(self._live(known))

    async def wait(self, principal: str, call: ToolWait) -> ToolJob:
        """A job at its end, or at new lines if `position` is given, or after `timeout_s`. Raises NotFound."""
        row = await self.find(principal, call.job)
        ends_at = float("inf") if call.timeout_s is None else time.monotonic() + call.timeout_s
        while not row.over and (left_s := ends_at - time.monotonic()) > 0:
            if call.position is not None and process_of(self._folder, row).lines(call.position)[0]:
                break
            if (life := self._lives.get(row.id)) is not None:
                pause_s = left_s if call.position is None else min(_POLL_S, left_s)
                await life.changed(None if pause_s == float("inf") else pause_s)
            row = await self.find(principal, call.job)
        return await asyncio.to_thread(self._shown, row, call.position)

    async def cancel(self, principal: str, id: str) -> ToolJob:
        """End a job; gives it at its end, without its result. Raises NotFound."""
        row = await self.find(principal, id)
        if row.id in self._lives:
            await self._lives[row.id].cancel()
        await self.wait(principal, ToolWait(id))
        return told(await self.find(principal, id))

    async def jobs(self, principal: str, *, ended: bool) -> list[JobRow]:
        """A principal's jobs, oldest first."""
        await self._found()
        return [self._live(row) for row in await self._table.of(principal, ended=ended)]

    async def find(self, principal: str, id: str) -> JobRow:
        """A job of a principal. Raises NotFound."""
        await self._found()
        return self._live(await self._table.find(principal, id))

    async def close(self) -> None:
        """Stop watching; the jobs go on."""
        tasks = [*self._tasks, *([self._finding] if self._finding is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _found(self) -> None:
        if self._finding is not None:
            await asyncio.shield(self._finding)

    async def _find(self) -> None:
        try:
            for row in await self._table.unfinished():
                self._begin(row)
        except AiosError as error:
            _log.error("the jobs of earlier kernels cannot be read: %s", error.message)

    def _begin(self, row: JobRow) -> None:
        life = self._lives[row.id] = JobLife(row, self._registry, self._slots, self._table, self._folder)
        task = asyncio.get_running_loop().create_task(self._worked(life))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _worked(self, life: JobLife) -> None:
        try:
            await life.work()
        except AiosError as error:  # the next kernel finds it
            _log.error('the end of a job of tool "%s" could not be written down: %s', life.row.tool, error.message)
            return
        del self._lives[life.row.id]
        if time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + _PRUNE_S
            for id in await self._table.prune():
                await asyncio.to_thread(JobProcess(self._folder / id).remove)

    def _live(self, row: JobRow) -> JobRow:
        """The row that is at work, if it is."""
        life = self._lives.get(row.id)
        return life.row if life is not None else row

    def _shown(self, row: JobRow, position: int | None) -> ToolJob:
        """A job with what it has printed; reads files."""
        process, tool = process_of(self._folder, row), self._registry.tool(row.tool)
        lines, after = process.lines(position) if position is not None else ([], 0)
        content = process.output() if row.state == "done" else ""
        untrusted = tool.untrusted if tool is not None else True
        return told(row, content=content, lines=lines, position=after, untrusted=untrusted)
