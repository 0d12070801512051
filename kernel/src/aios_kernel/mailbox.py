"""Mailboxes: messages from one agent to another, kept in memory until somebody takes them."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from aios_kernel import errors
from aios_kernel.syscalls import Mail

_LIMIT = 10_000
_BODY_LIMIT = 16 * 1024 * 1024


@dataclass(slots=True)
class _Waiter:
    topic: str | None
    sender: str | None
    future: asyncio.Future[Mail]

    def wants(self, mail: Mail) -> bool:
        return self.topic in {None, mail.topic} and self.sender in {None, mail.sender}


class Mailboxes:
    """One queue an address (principal and agent name, or principal and program). Used on the kernel's loop only."""

    def __init__(self) -> None:
        self._mail: dict[tuple[str, str], deque[Mail]] = {}
        self._waiters: dict[tuple[str, str], list[_Waiter]] = {}

    def put(self, principal: str, address: str, mail: Mail) -> None:
        """Deliver to the oldest waiter that wants it, else keep it. Raises Busy when the box is full."""
        if len(mail.body) > _BODY_LIMIT:
            raise errors.InvalidRequest("a message may have 16 MiB", fix="put the data into storage and send its path")
        key = (principal, address)
        for waiter in self._waiters.get(key, ()):
            if waiter.wants(mail) and not waiter.future.done():
                waiter.future.set_result(mail)
                return
        box = self._mail.setdefault(key, deque())
        if len(box) >= _LIMIT:
            raise errors.Busy(f'the mailbox of "{address}" is full ({_LIMIT:,} messages)', retry_after_s=1.0)
        box.append(mail)

    async def take(self, principal: str, addresses: list[str], topic: str | None, sender: str | None) -> Mail:
        """The oldest matching message of several addresses, waiting for one."""
        keys = [(principal, address) for address in addresses]
        waiter = _Waiter(topic, sender, asyncio.get_running_loop().create_future())
        for key in keys:
            for mail in self._mail.get(key, ()):
                if waiter.wants(mail):
                    self._mail[key].remove(mail)
                    return mail
        for key in keys:
            self._waiters.setdefault(key, []).append(waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled():
                # It was handed over in the same turn in which the wait was cancelled: put it back, lose nothing.
                self._mail.setdefault(keys[0], deque()).appendleft(waiter.future.result())
            raise
        finally:
            for key in keys:
                self._waiters[key].remove(waiter)
                if not self._waiters[key]:
                    del self._waiters[key]
