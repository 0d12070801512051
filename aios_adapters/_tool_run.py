"""A blocking tool in a thread of its own, begun by the kernel's grant and ended by its limit.

The thread that reads from the kernel hands the grant to the tool's thread, and the caller sleeps until the tool is
over: were it woken to pass the grant on, each call would cost one more switch of threads.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from aios_adapters._sync import Job, start
from aios_kernel.errors import AiosError, ProtocolError
from aios_kernel.syscalls import Result, ToolGrant

_FIRST_LOOK_S = 0.05
"""How long the caller sleeps before it looks what limit there is; a shorter one is noticed no sooner."""


class ToolRun(Job):
    """Runs in a copy of the context that it was made in. A thread that hangs is abandoned: it cannot be killed.

    Args:
        run: the tool.
        give_back: called, on a thread of its own, with a grant that comes when nobody waits any more.
    """

    __slots__ = ("_began_s", "_dropped", "_give_back", "grant")

    def __init__(self, run: Callable[[], Any], give_back: Callable[[ToolGrant], None]) -> None:
        super().__init__(run)
        self._give_back = give_back
        self.grant: ToolGrant | None = None
        self._began_s = 0.0
        self._dropped = False

    def answered(self, answer: Result | AiosError) -> None:
        """Take the kernel's answer to `tool.begin`. Called by the thread that reads; does not block."""
        if isinstance(answer, AiosError):
            self.outcome.put((None, answer))
        elif not isinstance(answer, ToolGrant):
            self.outcome.put((None, ProtocolError(f"the kernel answered {type(answer).__name__} to tool.begin")))
        elif self._dropped:  # sending could block, and this thread must go on reading
            threading.Thread(target=self._give_back, args=(answer,), name="aios-give-back", daemon=True).start()
        else:
            self._began_s = time.monotonic()
            self.grant = answer
            start(self)

    def drop(self) -> None:
        """Do not begin any more: nobody waits."""
        self._dropped = True

    def wait(self, timed_out: Callable[[ToolGrant], BaseException]) -> Any:
        """The tool's result. Raises what it raised, the kernel's refusal, or `timed_out(grant)`."""
        wait_s = _FIRST_LOOK_S
        while True:
            try:
                result, error = self.outcome.get(timeout=wait_s)
            except queue.Empty:
                if self.grant is None:
                    continue
                wait_s = self._began_s + self.grant.timeout_s - time.monotonic()
                if wait_s <= 0:
                    raise timed_out(self.grant) from None
            else:
                if error is not None:
                    raise error
                return result
