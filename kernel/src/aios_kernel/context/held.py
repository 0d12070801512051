"""A generation and the place of its context."""

from __future__ import annotations

from dataclasses import dataclass, field

from aios_kernel.chat.generation import Generation
from aios_kernel.context.place import Place
from aios_kernel.scheduler.protocol import Residency


@dataclass(slots=True, eq=False)
class Held(Place):
    """An open generation.

    Attributes:
        generation: the answer in the making.
        compared: the parked context that its prompt was compared with, and how many tokens of it are of use.
        kin: all answers to its prompt that were open together, itself among them.
    """

    generation: Generation
    compared: tuple[Place, int] | None = None
    kin: list[Held] = field(init=False)

    def __post_init__(self) -> None:
        self.kin = [self]

    @property
    def total(self) -> int:
        """Tokens of the sequence, prompt and answer, wherever it is."""
        return len(self.generation.order.prompt) if self.residency is Residency.QUEUED else self.length

    @property
    def pending(self) -> int:
        """Tokens without KV."""
        return self.total - self.computed
