"""Whether an engine said what the oracle said."""

from __future__ import annotations

from collections.abc import Callable, Sequence

TIE_MARGIN = 1e-3
"""The oracle's two best logits nearer than this are a tie: either is right (engine contract)."""


def identical(
    mine: Sequence[Sequence[int]], oracle: Sequence[Sequence[int]], margin: Callable[[Sequence[int]], float]
) -> float:
    """Share of the conversations that are the oracle's, up to the first tie.

    Args:
        mine: an engine's conversations, prompts and answers.
        oracle: the oracle's; it may have fewer.
        margin: the oracle's distance of its two best logits after some tokens.
    """
    same = [_same(one, other, margin) for one, other in zip(mine, oracle, strict=False)]
    return sum(same) / len(same)


def _same(mine: Sequence[int], oracle: Sequence[int], margin: Callable[[Sequence[int]], float]) -> bool:
    place = next((i for i, (one, other) in enumerate(zip(mine, oracle, strict=True)) if one != other), None)
    return place is None or margin(oracle[:place]) <= TIE_MARGIN
