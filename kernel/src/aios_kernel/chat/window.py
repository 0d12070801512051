"""Where a conversation that outgrows the window may be cut: pure functions of its messages.

A cut at place `p` leaves out the messages before `p`, but for the system messages and, when `p` is in the middle of a
turn, the user's message of that turn. It never parts a tool call from its result. Places lie on a grid of dropped
tokens, counted from the beginning, so that a conversation that grows keeps its cut (and its KV) until half of the room
has filled up again.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aios_kernel.syscalls import Message


@dataclass(frozen=True, slots=True)
class Cut:
    """What is left of a conversation that is cut at `place` (an index of its messages; 0: nothing is left out)."""

    place: int
    kept: list[Message]
    dropped: list[Message]


def places(messages: Sequence[Message]) -> list[int]:
    """Indices at which a conversation may be cut, ascending: at a turn's first message or at a step of its agent."""
    bound = _bound_to(messages)
    reach = [*itertools.accumulate(reversed(bound), min)][::-1]  # the earliest message that what follows is bound to
    return [
        index
        for index, message in enumerate(messages)
        if index and message.role in {"user", "assistant"} and reach[index] >= index
    ]


def cut_at(messages: Sequence[Message], place: int) -> Cut:
    """The conversation cut at one of its `places`."""
    kept, dropped = list[Message](), list[Message]()
    asked = _question(messages, place)
    for index, message in enumerate(messages[:place]):
        (kept if message.role == "system" or index == asked else dropped).append(message)
    return Cut(place, [*kept, *messages[place:]], dropped)


def grid(messages: Sequence[Message], weights: Sequence[int], step: int) -> Iterator[int]:
    """The places to try, from the one that drops least: each drops at least one more `step` of tokens.

    Args:
        messages: the conversation.
        weights: tokens of each message, counted by itself.
        step: at least 1.
    """
    allowed = places(messages)
    before = [0, *itertools.accumulate(0 if m.role == "system" else w for m, w in zip(messages, weights, strict=True))]
    dropped = [before[place] for place in allowed]
    target = step
    while allowed:
        found = min(bisect.bisect_left(dropped, target), len(allowed) - 1)
        yield allowed[found]
        if found == len(allowed) - 1:
            return
        target = (dropped[found] // step + 1) * step


def _question(messages: Sequence[Message], place: int) -> int:
    """Index of the user's message of the turn that a cut goes through; -1 if it goes through none."""
    if messages[place].role == "user":
        return -1
    return next((index for index in range(place - 1, -1, -1) if messages[index].role == "user"), -1)


def _bound_to(messages: Sequence[Message]) -> list[int]:
    """For each message the index of the one that it must not be parted from: a result's call; else itself."""
    calls: dict[str, int] = {}
    last = -1
    bound: list[int] = []
    for index, message in enumerate(messages):
        if message.tool_calls:
            last = index
            calls.update((call.id, index) for call in message.tool_calls)
        if message.role == "tool":
            call = calls.get(message.tool_call_id or "", last)
            bound.append(call if call >= 0 else index)
        else:
            bound.append(index)
    return bound
