"""CPU time of a thread by part, step after step."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Spent = Mapping[str, float]
"""Seconds by part."""


class Stopwatch:
    """Charges the CPU time of the thread that calls it to parts; of nested parts the innermost is charged.

    Args:
        others: by part, what reads the CPU seconds that something beside the thread has spent so far.

    Attributes:
        steps: what each step that was kept has spent.
    """

    def __init__(self, others: Mapping[str, Callable[[], float]] | None = None) -> None:
        self.steps: list[Spent] = []
        self._others = others or {}
        self._spent: dict[str, float] = defaultdict(float)
        self._open = ["rest"]
        self._since = 0.0
        self._before: dict[str, float] = {}

    def begin(self) -> None:
        """A step begins here, on the thread that is watched; what was spent since the last one is forgotten."""
        self._spent.clear()
        self._before = {part: read() for part, read in self._others.items()}
        self._since = time.thread_time()

    def keep(self) -> None:
        """The step has ended and counts."""
        self._charge()
        for part, read in self._others.items():
            self._spent[part] = read() - self._before[part]
        self.steps.append(dict(self._spent))

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time charged to the part."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self._charge()
            self._open.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._charge()
                self._open.pop()

        return run

    @contextmanager
    def watching(self, places: Sequence[tuple[Any, str, str]]) -> Generator[None]:
        """Time functions where they stand: (module or object, attribute, part) each."""
        before = [(owner, name, vars(owner).get(name)) for owner, name, _ in places]
        for owner, name, part in places:
            setattr(owner, name, self.timed(part, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, own in before:
                delattr(owner, name) if own is None else setattr(owner, name, own)

    def _charge(self) -> None:
        now = time.thread_time()
        self._spent[self._open[-1]] += now - self._since
        self._since = now


def cheapest(steps: Sequence[Spent], window: int, share: float = 0.2) -> dict[str, float]:
    """Mean seconds a step of each part, over the windows of successive steps that cost least.

    Other programs run on this machine too; a step alone is no measure, since some do what others leave to them (a block
    of KV is full every 16 tokens).

    Args:
        steps: in their order; at least one window.
        window: steps in one.
        share: of the windows that count, at least one.
    """
    windows = [steps[first : first + window] for first in range(0, len(steps) - window + 1, window)]
    windows.sort(key=lambda some: sum(sum(step.values()) for step in some))
    counted = [step for some in windows[: max(1, round(share * len(windows)))] for step in some]
    parts = dict.fromkeys(part for step in counted for part in step)
    return {part: sum(step.get(part, 0.0) for step in counted) / len(counted) for part in parts}
