"""Open syscalls: each ends exactly once, with a result, a typed error or a cancellation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from aios_kernel import errors
from aios_kernel.process import Program
from aios_kernel.syscalls import Delta, Done, Failed, LlmDelta, Mark, Result, Syscall, Usage, WindowCut, name_of

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
    ran_s: float = 0.0
    """Seconds on the model before it was last swapped out."""
    resumed_s: float | None = None
    """Since when it has been on the model, without a break."""
    ended: bool = False
    phase: Literal["ready", "running"] | None = None
    """Of an LLM call: queued for the model (or swapped out), or on it."""
    usage: Usage = field(default_factory=Usage)
    generations: list[Generation] = field(default_factory=list["Generation"])
    """Of an LLM call: its answers in the making, more than one if it asked for several."""
    unended: int = 0
    """Of these, whose end has not been told here yet."""
    found: tuple[int, int] = (0, 0)
    """Of an LLM call: open generations and free tokens of KV when it began to wait for the model."""
    cut: WindowCut | None = None
    """Of an LLM call: what its window had no room for."""
    marks: list[Mark] = field(default_factory=list[Mark])
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    deadline_s: float | None = None
    """When it is ended early, in `time.monotonic()` seconds."""

    @property
    def name(self) -> str:
        """The syscall's name."""
        return name_of(self.call)

    def queue(self) -> None:
        """An LLM call waits for the model."""
        self.phase = "ready"
        self.program.ready += 1

    def run(self, at_s: float) -> None:
        """It is on the model from now on: its first step, or swapped in again."""
        if self.phase == "ready" and not self.ended:
            self.phase = "running"
            self.program.ready -= 1
            self.program.running += 1
            self.started_s = self.started_s or at_s
            self.resumed_s = at_s

    def pause(self, at_s: float) -> None:
        """It was swapped out and waits again."""
        if self.phase == "running" and not self.ended:
            self.ran_s = self.ran_until(at_s)
            self.resumed_s = None
            self.phase = "ready"
            self.program.running -= 1
            self.program.ready += 1

    def leave(self) -> None:
        """It has ended: out of the books of its program."""
        if self.phase == "ready":
            self.program.ready -= 1
        elif self.phase == "running":
            self.program.running -= 1

    def ran_until(self, now_s: float) -> float:
        """Seconds that it ran; the rest of its time it waited. Calls that need no model run from the start."""
        if self.phase is None:
            return now_s - self.opened_s
        return self.ran_s + (now_s - self.resumed_s if self.resumed_s is not None else 0.0)

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
        if self._end(error.code):
            self.reply(failed(self.id, error, self.program.agent, self.name))

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


def failed(number: int, error: errors.AiosError, agent: str | None = None, syscall: str | None = None) -> Failed:
    """The frame that carries an error; it names agent and syscall unless the error itself does.

    The error stays as it is: one that ends a whole batch belongs to several agents.
    """
    return Failed(
        id=number,
        code=error.code,
        message=error.message,
        agent=error.agent or agent,
        syscall=error.syscall or syscall,
        fix=error.fix,
        retry_after_s=error.retry_after_s,
    )
