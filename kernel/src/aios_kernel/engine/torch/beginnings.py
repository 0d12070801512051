"""Cached blocks by what they begin with, so that one that suits in part can be copied as far as it does."""

from __future__ import annotations

import array
import itertools
from collections.abc import Iterable, Sequence

_COMPARED = 16
"""Blocks with the same first token behind the same prefix; the latest are as good as all."""


class Beginnings:
    """The tokens of published blocks, full ones and tails, behind the content key of what stands in front of them."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[bytes, int], dict[int, array.array[int]]] = {}
        self._places: dict[int, tuple[bytes, int]] = {}

    def add(self, block: int, parent: bytes, tokens: Sequence[int]) -> None:
        """Note what a block holds behind `parent`; the latest for a block counts."""
        self.remove(block)
        place = self._places[block] = (parent, tokens[0])
        self._blocks.setdefault(place, {})[block] = array.array("i", tokens)

    def remove(self, block: int) -> None:
        """Forget a block."""
        place = self._places.pop(block, None)
        if place is not None:
            blocks = self._blocks[place]
            del blocks[block]
            if not blocks:
                del self._blocks[place]

    def length(self, block: int) -> int:
        """Tokens of a block that are known here; 0: none."""
        place = self._places.get(block)
        return 0 if place is None else len(self._blocks[place][block])

    def known(self, blocks: Iterable[int]) -> set[int]:
        """Those of the blocks that are noted here."""
        return {*blocks} & self._places.keys()

    def longest(self, parent: bytes, tokens: Sequence[int]) -> tuple[int, int]:
        """The block that begins most like `tokens` behind `parent`, and how many tokens that is; (0, 0): none does."""
        if not tokens:
            return 0, 0
        known = self._blocks.get((parent, tokens[0]), {})
        latest = itertools.islice(reversed(known.items()), _COMPARED)
        found = [(_common(held, tokens), block) for block, held in latest]
        length, block = max(found, key=lambda pair: pair[0], default=(0, 0))
        return block, length


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))
