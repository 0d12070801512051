"""Mailboxes: nothing is lost when a reader goes, and nobody waits beside a message that is there."""

from __future__ import annotations

import asyncio

import pytest

from aios_kernel import errors
from aios_kernel.mailbox import Mailboxes
from aios_kernel.syscalls import Mail


def mail(body: str, sent_s: float = 0.0) -> Mail:
    return Mail(sender="tom", body=body, sent_s=sent_s)


async def waiting(boxes: Mailboxes, *addresses: str) -> asyncio.Task[Mail]:
    task = asyncio.ensure_future(boxes.take("me", list(addresses), None, None))
    await asyncio.sleep(0)
    return task


async def test_a_message_whose_reader_was_cancelled_in_the_same_turn_goes_to_the_next_reader() -> None:
    boxes = Mailboxes()
    first, second = await waiting(boxes, "p1", "agent"), await waiting(boxes, "p2", "agent")
    boxes.put("me", "agent", mail("hello"))
    first.cancel()
    assert (await asyncio.wait_for(second, 1)).body == "hello"
    assert first.cancelled() or (await asyncio.gather(first, return_exceptions=True))


async def test_such_a_message_stays_in_the_box_that_it_was_sent_to() -> None:
    boxes = Mailboxes()
    first = await waiting(boxes, "p1", "agent")
    boxes.put("me", "agent", mail("hello"))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    boxes.discard("me", "p1")  # its program has ended
    assert (await asyncio.wait_for(boxes.take("me", ["p2", "agent"], None, None), 1)).body == "hello"


async def test_the_oldest_of_several_boxes_comes_first() -> None:
    boxes = Mailboxes()
    boxes.put("me", "agent", mail("older", 1.0))
    boxes.put("me", "p1", mail("newer", 2.0))
    assert [(await boxes.take("me", ["p1", "agent"], None, None)).body for _ in range(2)] == ["older", "newer"]


async def test_the_limit_counts_bytes() -> None:
    with pytest.raises(errors.InvalidRequest):
        Mailboxes().put("me", "agent", mail("é" * (9 * 1024 * 1024)))


async def test_a_box_and_all_boxes_are_bounded_in_bytes() -> None:
    boxes = Mailboxes()
    large = "x" * (16 << 20)
    for _ in range(4):
        boxes.put("me", "agent", mail(large))
    with pytest.raises(errors.Busy, match='mailbox of "agent" is full'):
        boxes.put("me", "agent", mail("x"))
    for number in range(7):
        for _ in range(4):
            boxes.put("me", f"other{number}", mail(large))
    with pytest.raises(errors.Busy, match="all mailboxes together"):
        boxes.put("me", "one more", mail("x"))
    assert (await boxes.take("me", ["agent"], None, None)).body == large
    boxes.put("me", "agent", mail("x"))
    boxes.discard("me", "other0")
    boxes.put("me", "one more", mail(large))
