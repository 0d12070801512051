"""Orders come in their order, whether they wake the thread or not, and none is lost."""

from __future__ import annotations

import threading
from queue import Empty

import pytest

from aios_kernel.scheduler.inbox import Inbox, Order


def one() -> None: ...
def two() -> None: ...
def three() -> None: ...


class Resting:
    """A thread that rests until its first order."""

    def __init__(self, inbox: Inbox) -> None:
        self.taken: list[Order] = []
        self._thread = threading.Thread(target=lambda: self.taken.append(inbox.wait(30, rest=True)))
        self._thread.start()
        pause = threading.Event()
        while not inbox.rests:
            pause.wait(0.001)

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_quiet_orders_wait_for_whoever_wakes() -> None:
    inbox = Inbox()
    thread = Resting(inbox)
    assert inbox.put_quietly(one)
    assert inbox.put_quietly(two)
    assert inbox.quiet == 2
    assert inbox.empty
    assert not thread.taken
    inbox.wake()
    thread.join()
    assert thread.taken == [one]
    assert inbox.take() is two
    assert inbox.empty
    assert inbox.quiet == 0


def test_whatever_comes_in_the_ordinary_way_wakes_and_comes_behind() -> None:
    inbox = Inbox()
    thread = Resting(inbox)
    inbox.put_quietly(one)
    inbox.put_quietly(two)
    inbox.put(three)
    thread.join()
    assert [*thread.taken, inbox.take(), inbox.take()] == [one, two, three]


def test_nothing_waits_while_the_thread_is_busy() -> None:
    inbox = Inbox()
    inbox.put_quietly(one)
    inbox.put(two)
    inbox.put_quietly(three)
    assert inbox.quiet == 0
    assert [inbox.take(), inbox.take(), inbox.wait(1)] == [one, two, three]
    with pytest.raises(Empty):
        inbox.wait(0.001)
    assert not inbox.rests


def test_the_end_brings_what_was_quiet_and_takes_nothing_more() -> None:
    inbox = Inbox()
    thread = Resting(inbox)
    assert inbox.put_quietly(one)
    inbox.close()
    thread.join()
    assert thread.taken == [one]
    assert not inbox.put(two)
    assert not inbox.put_quietly(three)
    assert inbox.empty
