"""An inverted index: which slots have a term, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt

from aios_kernel.memory.terms import Counts, Keys, Terms

Slots: TypeAlias = npt.NDArray[np.int64]
"""Places of notes in a shelf, ascending."""


class _Run(NamedTuple):
    """Postings sorted by key, then slot; those of `keys[i]` stand at `starts[i]` to `starts[i + 1]`."""

    keys: Keys
    starts: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int32]
    counts: Counts

    def expanded(self) -> Keys:
        return np.repeat(self.keys, np.diff(self.starts))


class Posting(NamedTuple):
    """The slots that have one term, and how often each has it."""

    slots: Slots
    counts: Counts


@final
class Postings:
    """Sorted runs, of which neighbours of like size are merged: an entry moves a logarithmic number of times."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._fresh: list[tuple[int, Terms]] = []

    def add(self, slot: int, terms: Terms) -> None:
        """Enter the terms of a slot; slots only ascend."""
        self._fresh.append((slot, terms))

    def fill(self, terms: Terms, sizes: npt.NDArray[np.int64]) -> None:
        """Enter the terms of the first slots, `sizes` of each; before any other."""
        if len(terms.keys):
            self._push(terms.keys, np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), terms.counts)

    def find(self, keys: Keys) -> list[Posting]:
        """The postings of each key that occurs at all."""
        self._flush()
        parts: dict[int, list[Posting]] = {}
        for run in self._runs:
            at = np.searchsorted(run.keys, keys)
            at[at == len(run.keys)] = 0
            for key in np.flatnonzero(run.keys[at] == keys).tolist():
                span = slice(run.starts[at[key]], run.starts[at[key] + 1])
                found = Posting(run.slots[span].astype(np.int64), run.counts[span])
                parts.setdefault(key, []).append(found)
        return [_joined(parts[key]) for key in sorted(parts)]

    def _flush(self) -> None:
        fresh = [(slot, terms) for slot, terms in self._fresh if len(terms.keys)]
        self._fresh.clear()
        if not fresh:
            return
        sizes = [len(terms.keys) for _, terms in fresh]
        self._push(
            np.concatenate([terms.keys for _, terms in fresh]),
            np.repeat(np.array([slot for slot, _ in fresh], np.int32), sizes),
            np.concatenate([terms.counts for _, terms in fresh]),
        )
        while len(self._runs) > 1 and len(self._runs[-2].slots) <= 2 * len(self._runs[-1].slots):
            new, old = self._runs.pop(), self._runs.pop()
            self._push(
                np.concatenate([old.expanded(), new.expanded()]),
                np.concatenate([old.slots, new.slots]),
                np.concatenate([old.counts, new.counts]),
            )

    def _push(self, keys: Keys, slots: npt.NDArray[np.int32], counts: Counts) -> None:
        order = np.argsort(keys, kind="stable")  # stable keeps the slots of a key ascending
        keys = keys[order]
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        self._runs.append(_Run(keys[first], np.append(first, len(keys)), slots[order], counts[order]))


def _joined(parts: Sequence[Posting]) -> Posting:
    if len(parts) == 1:
        return parts[0]
    return Posting(np.concatenate([part.slots for part in parts]), np.concatenate([part.counts for part in parts]))
