"""What a program's earlier calls left in the KV pool, to see how much of it the next turn's prompt does not match."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_CONVERSATIONS = 8
"""Remembered of each program..."""
_ANSWERS = 8
"""...and of each of these so many answers, of which the next turn contains one."""
_PIECE = 64
"""Tokens compared at once."""


class Conversations:
    """The computed tokens of each program's last calls, by the messages that they answered.

    Conversations are told apart by `chat.history.history_keys`. A call whose messages begin with all those of an
    earlier one is its next turn. Its prompt should begin with the tokens that the earlier one computed; where it does
    not, because the template renders history in another way or because the answer's text becomes other tokens, KV was
    computed in vain: the divergence, in tokens. Of several answers to the same messages the nearest one counts.
    """

    def __init__(self) -> None:
        self._known: dict[str, OrderedDict[bytes, deque[NDArray[np.int32]]]] = {}

    def note(self, program: str, history: Sequence[bytes], computed: Sequence[int]) -> None:
        """Remember what a call has computed."""
        if not history:
            return
        known = self._known.setdefault(program, OrderedDict())
        answers = known.setdefault(history[-1], deque(maxlen=_ANSWERS))
        answers.append(np.asarray(computed, dtype=np.int32))
        known.move_to_end(history[-1])
        while len(known) > _CONVERSATIONS:
            known.popitem(last=False)

    def divergence(self, program: str, history: Sequence[bytes], prompt: Sequence[int]) -> int:
        """Computed tokens of the turn before that a prompt does not match; 0 for a new conversation."""
        known = self._known.get(program)
        for key in reversed(history[:-1]) if known else ():
            answers = known.get(key) if known else None
            if answers:
                return min(len(earlier) - common_length(earlier, prompt) for earlier in answers)
        return 0

    def forget(self, program: str) -> None:
        """Drop what is known of a program that has ended."""
        self._known.pop(program, None)


def common_length(earlier: Sequence[int] | NDArray[np.int32], prompt: Sequence[int]) -> int:
    """Length of the common beginning."""
    size = min(len(earlier), len(prompt))
    different = np.flatnonzero(np.asarray(earlier[:size], dtype=np.int32) != np.asarray(prompt[:size], dtype=np.int32))
    return int(different[0]) if len(different) else size


def same_beginning(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """Length of the common beginning of two lists of tokens, of which `most` in each count.

    Most pairs part at once, and those that do not are compared a piece at a time: nothing is copied into arrays.
    """
    start = 0
    while start < most and one[start : start + _PIECE] == other[start : start + _PIECE]:
        start += _PIECE
    while start < most and one[start] == other[start]:
        start += 1
    return min(start, most)
