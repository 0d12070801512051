"""A step that was begun and whose result nobody has fetched yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from aios_kernel.engine.torch.batch import Work
from aios_kernel.engine.torch.context import TorchContext


def nothing() -> None:
    """What is left to do of a step that has run to its end."""


def both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    """One call for two."""

    def call() -> None:
        first()
        second()

    return call


class Underway(NamedTuple):
    """A forward that was launched: what waits for its choices, and the tokens that it chooses, on the device."""

    finish: Callable[[], None] = nothing
    tokens: Tensor | None = None


_DONE = Underway()


@dataclass(frozen=True, slots=True)
class Launched:
    """A step between its two phases.

    Attributes:
        entries: the plan.
        works: what each context computes.
        undo: gives back the blocks that were taken for it.
        underway: the forward.
        error: why nothing was begun.
    """

    entries: Sequence[tuple[TorchContext, int]]
    works: Sequence[Work] = ()
    undo: Callable[[], None] = nothing
    underway: Underway = _DONE
    error: Exception | None = None
