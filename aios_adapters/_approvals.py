"""`on_approval`: a function of this process answers calls that wait for a person."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Literal, TypeAlias

from aios_adapters._kernel import link_for
from aios_adapters.plugins import host
from aios_kernel import errors
from aios_kernel.client import Client, Connection, connect
from aios_kernel.config import load
from aios_kernel.syscalls import AccessApprove, AccessPending, Approval, Approvals

Answer: TypeAlias = "bool | Literal['always', 'never'] | None"
"""Whether a call may run; `always` and `never` hold for the rest of that run; None leaves it to others."""

_log = logging.getLogger("aios_adapters")
_ANSWERS: dict[object, tuple[bool, bool]] = {
    True: (True, False), False: (False, False), "always": (True, True), "never": (False, True),
}  # fmt: skip


def on_approval(answer: Callable[[Approval], Answer], *, kernel: str | None = None) -> Callable[[], None]:
    """Have a function asked about every call that the access policy wants a person to decide.

    It is called on a thread of its own, one call after another, with what `aios approvals` shows: the agent, the tool,
    the arguments (keys taken out, cut, control characters escaped) and what tainted the run. While it thinks, the run
    is parked. If it raises, the call is left to others, and in the end to the rule's default.

    Args:
        answer: gives True, False, `"always"` or `"never"` (for the rest of that run), or None to leave it to others.
        kernel: overrides `AIOS_KERNEL`.

    Returns:
        What ends it.

    Raises:
        KernelUnavailable: no kernel runs and none can be started.
    """
    config = load({"kernel": kernel})
    link_for(config, host()).connect()  # starts or joins the kernel that the agents here will use
    asking = _Asking(connect(config, client="on_approval", start=False), answer)
    threading.Thread(target=asking.run, name="aios-approvals", daemon=True).start()
    return asking.stop


class _Asking:
    """Takes calls that wait, one by one, from the kernel to the function."""

    def __init__(self, connection: Connection, answer: Callable[[Approval], Answer]) -> None:
        self._connection = connection
        self._client = Client(connection)
        self._answer = answer
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ask no more; a call that the function is looking at is left to others."""
        self._stopped.set()
        self._connection.close()

    def run(self) -> None:
        """Until it is stopped, or the kernel has gone."""
        after = 0
        while not self._stopped.is_set():
            try:
                found = self._client.call(AccessPending(after=after, wait=True))
                assert isinstance(found, Approvals)
                for approval in found.approvals:
                    after = approval.number
                    self._ask(approval)
            except errors.AiosError as error:
                if not self._stopped.is_set():
                    _log.warning("nobody here is asked about approvals any more: %s", error.message)
                return

    def _ask(self, approval: Approval) -> None:
        try:
            answer = self._answer(approval)
        except Exception:  # noqa: BLE001 - a fault of the user's function must not answer for him
            _log.exception("the function given to on_approval failed; the call of %s waits on", approval.agent)
            return
        if answer is None:
            return
        if answer not in _ANSWERS:
            _log.error('on_approval gave %.80r; it may give True, False, "always", "never" or None', answer)
            return
        allow, remember = _ANSWERS[answer]
        try:
            self._client.call(AccessApprove(id=approval.id, allow=allow, remember=remember))
        except errors.NotFound:
            _log.info("the call of %s was answered before, or has gone", approval.agent)
