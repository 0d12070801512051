"""Open syscalls: each ends exactly once, with a result, a typed error or a cancellation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from aios_kernel import errors
from aios_kernel.process import Program
from aios_kernel.syscalls import Delta, Done, Failed, LlmDelta, Result, Syscall, Usage, name_of

if TYPE_CHECKING:
    from aios_kernel.chat.generation import Generation

Reply: TypeAlias = Callable[[Delta | Done | Failed], None]
"""Takes the frames of one request, on the kernel's loop; the last is `Done` or `Failed`."""


@dataclass(slots=True, eq=False)
class OpenCall:
    """One syscall between its arrival and its end. Times are `time.time()` seconds."""

    id: int
    call: Syscall
    program: Program
    reply: Reply
    on_end: Callable[[OpenCall, str], None]
    opened_s: float = field(default_factory=time.time)
    started_s: float | None = None
    """When it stopped waiting: for the model, its first step."""
    ended: bool = False
    phase: Literal["ready", "running"] | None = None
    """Of an LLM call: queued for the model, or on it."""
    usage: Usage = field(default_factory=Usage)
    generation: Generation | None = None
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """The syscall's name."""
        return name_of(self.call)

    def show(self, delta: LlmDelta) -> None:
        """Send a piece of a streamed answer."""
        if not self.ended:
            self.reply(Delta(id=self.id, delta=delta))

    def finish(self, result: Result) -> None:
        """End with a result, unless it has ended."""
        if self._end("ok"):
            self.reply(Done(id=self.id, result=result))

    def fail(self, error: errors.AiosError) -> None:
        """End with an error, unless it has ended."""
        error.with_caller(self.program.agent, self.name)
        if self._end(error.code):
            self.reply(failed(self.id, error))

    def _end(self, outcome: str) -> bool:
        if self.ended:
            return False
        self.ended = True
        if self.timer is not None:
            self.timer.cancel()
        if self.task is not None and outcome != "ok":
            self.task.cancel()
        self.on_end(self, outcome)
        return True


def failed(number: int, error: errors.AiosError) -> Failed:
    """The frame that carries an error."""
    return Failed(
        id=number,
        code=error.code,
        message=error.message,
        agent=error.agent,
        syscall=error.syscall,
        fix=error.fix,
        retry_after_s=error.retry_after_s,
    )
