"""Chats that may outgrow the window: their strategies are applied here, summaries asked for on the way."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from aios_kernel import errors
from aios_kernel.calls import OpenCall
from aios_kernel.chat.service import ChatService
from aios_kernel.chat.window_fit import Fitted, Fitting
from aios_kernel.syscalls import Delta, Done, Failed, LlmChat, LlmResult, Mark


@dataclass(slots=True)
class Windows:
    """Fits calls on the kernel's loop; what takes time runs on `prepare`.

    Attributes:
        submit: starts a syscall.
        ended: books one that has ended.
        cut: calls that were cut so far.
        tokens_dropped: what was left out of them.
    """

    chat: ChatService
    prepare: Executor
    submit: Callable[[OpenCall, float | None], None]
    ended: Callable[[OpenCall, str], None]
    cut: int = 0
    tokens_dropped: int = 0
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def fit(self, open_call: OpenCall, call: LlmChat) -> LlmChat | Fitted:
        """The call as it fits the window. Raises ContextTooLong, and what a summary's call ends with."""
        if self.chat.fits_by_itself(call, open_call.program):
            return call
        fitting = self.chat.fit(call, open_call.program)
        loop = asyncio.get_running_loop()
        asked = await loop.run_in_executor(self.prepare, _advance, fitting, None)
        while isinstance(asked, LlmChat):
            summary = await self._answer(open_call, asked)
            asked = await loop.run_in_executor(self.prepare, _advance, fitting, summary.text.strip())
        self._note(open_call, asked)
        return asked

    async def _answer(self, open_call: OpenCall, call: LlmChat) -> LlmResult:
        """Ask the model on behalf of the caller's program; a caller that goes takes the question along."""
        answer: asyncio.Future[Done | Failed] = asyncio.get_running_loop().create_future()

        def reply(frame: Delta | Done | Failed) -> None:
            if not isinstance(frame, Delta) and not answer.done():
                answer.set_result(frame)

        asking = OpenCall(next(self._numbers), call, open_call.program, reply, self.ended)
        self.submit(asking, None)
        try:
            frame = await answer
        finally:
            asking.fail(errors.Cancelled("the call that needed this summary has gone"))
        if isinstance(frame, Failed):
            raise errors.from_code(frame.code, f"no summary could be made: {frame.message}", fix=frame.fix)
        assert isinstance(frame.result, LlmResult)
        return frame.result

    def _note(self, open_call: OpenCall, fitted: Fitted) -> None:
        cut = open_call.cut = fitted.cut
        if cut is None:
            return
        self.cut += 1
        self.tokens_dropped += cut.dropped_tokens
        detail = f"{cut.strategy}: {cut.dropped_messages:,} messages of {cut.dropped_tokens:,} tokens"
        open_call.marks.append(Mark(time.time(), "cut", detail))


def _advance(fitting: Fitting, answer: str | None) -> LlmChat | Fitted:
    """The next question, or the end; a future cannot carry StopIteration."""
    try:
        return fitting.send(answer) if answer is not None else next(fitting)
    except StopIteration as end:
        fitted: Fitted = end.value
        return fitted
