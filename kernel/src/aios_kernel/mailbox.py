"""Mailboxes: messages from one agent to another, kept in memory until somebody takes them."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from aios_kernel import errors
from aios_kernel.syscalls import Mail

_LIMIT = 10_000
_BODY_LIMIT = 16 << 20
_BOX_LIMIT = 64 << 20
_TOTAL_LIMIT = 512 << 20
"""Bytes of the bodies in one mailbox, and in all of them."""

_Key: TypeAlias = tuple[str, str]
"""Principal and address."""


@dataclass(slots=True, eq=False)
class _Waiter:
    topic: str | None
    sender: str | None
    future: asyncio.Future[tuple[_Key, Mail]]

    def wants(self, mail: Mail) -> bool:
        return self.topic in {None, mail.topic} and self.sender in {None, mail.sender}


class _Box:
    """Mail for one address, the oldest first, and how many bytes its bodies have."""

    def __init__(self) -> None:
        self.mail: deque[tuple[Mail, int]] = deque()
        self.nbytes = 0


class Mailboxes:
    """One queue an address (principal and agent name, or principal and program). Used on the kernel's loop only."""

    def __init__(self) -> None:
        self._boxes: dict[_Key, _Box] = {}
        self._nbytes = 0
        self._waiters: dict[_Key, list[_Waiter]] = {}

    def put(self, principal: str, address: str, mail: Mail) -> None:
        """Deliver to the oldest waiter that wants it, else keep it. Raises Busy when there is no room for it."""
        size = len(mail.body.encode()) if len(mail.body) <= _BODY_LIMIT else len(mail.body)
        if size > _BODY_LIMIT:
            raise errors.InvalidRequest("a message may have 16 MiB", fix="put the data into storage and send its path")
        key = (principal, address)
        if self._handed_over(key, mail):
            return
        box = self._boxes.get(key) or _Box()
        full = f"{len(box.mail):,} messages, {box.nbytes:,} bytes"
        if len(box.mail) >= _LIMIT or box.nbytes + size > _BOX_LIMIT:
            raise errors.Busy(f'the mailbox of "{address}" is full ({full})', retry_after_s=1.0)
        if self._nbytes + size > _TOTAL_LIMIT:
            raise errors.Busy(f"all mailboxes together are full ({self._nbytes:,} bytes)", retry_after_s=1.0)
        self._keep(key, mail, size)

    async def take(self, principal: str, addresses: list[str], topic: str | None, sender: str | None) -> Mail:
        """The oldest matching message of several addresses, waiting for one."""
        keys = [(principal, address) for address in addresses]
        waiter = _Waiter(topic, sender, asyncio.get_running_loop().create_future())
        kept = self._oldest(keys, waiter)
        if kept is not None:
            return kept
        for key in keys:
            self._waiters.setdefault(key, []).append(waiter)
        try:
            return (await waiter.future)[1]
        except asyncio.CancelledError:
            self._forget(keys, waiter)
            if waiter.future.done() and not waiter.future.cancelled():
                # It was handed over in the same turn in which the wait was cancelled: pass it on, lose nothing.
                key, mail = waiter.future.result()
                if not self._handed_over(key, mail):
                    self._keep(key, mail, len(mail.body.encode()), first=True)
            raise
        finally:
            self._forget(keys, waiter)

    def addresses(self) -> list[_Key]:
        """Principal and address of every box that has mail."""
        return [*self._boxes]

    def discard(self, principal: str, address: str) -> None:
        """Drop what nobody will read any more: the box of a program that has ended."""
        box = self._boxes.pop((principal, address), None)
        self._nbytes -= box.nbytes if box is not None else 0

    def _keep(self, key: _Key, mail: Mail, size: int, *, first: bool = False) -> None:
        box = self._boxes.setdefault(key, _Box())
        (box.mail.appendleft if first else box.mail.append)((mail, size))
        box.nbytes += size
        self._nbytes += size

    def _handed_over(self, key: _Key, mail: Mail) -> bool:
        for waiter in self._waiters.get(key, ()):
            if waiter.wants(mail) and not waiter.future.done():
                waiter.future.set_result((key, mail))
                return True
        return False

    def _oldest(self, keys: list[_Key], waiter: _Waiter) -> Mail | None:
        found = [
            (mail.sent_s, key, number)
            for key in keys
            if (box := self._boxes.get(key)) is not None
            for number, (mail, _) in enumerate(box.mail)
            if waiter.wants(mail)
        ]
        if not found:
            return None
        _, key, number = min(found)
        box = self._boxes[key]
        mail, size = box.mail[number]
        del box.mail[number]
        box.nbytes -= size
        self._nbytes -= size
        if not box.mail:
            del self._boxes[key]
        return mail

    def _forget(self, keys: list[_Key], waiter: _Waiter) -> None:
        for key in keys:
            waiters = self._waiters.get(key, [])
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self._waiters.pop(key, None)
