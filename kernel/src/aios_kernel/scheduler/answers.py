"""Several answers to one prompt: the others wait until the first has computed it, and are forked from there."""

from __future__ import annotations

from aios_kernel.context.held import Held


class Answers:
    """Who waits for the prompt of the first answer of its call. Used by the dispatcher's thread.

    Args:
        forks: whether the engine can fork a context; otherwise nobody waits.
    """

    def __init__(self, *, forks: bool) -> None:
        self._forks = forks
        self._waiting: dict[int, list[Held]] = {}  # by the id of the first answer

    def join(self, held: Held, first: Held) -> bool:
        """Take in a further answer to the prompt of `first`; whether it has to wait for it."""
        held.kin = first.kin
        held.kin.append(held)
        if not self._forks or first.generation.generated:
            return False
        self._waiting.setdefault(first.generation.id, []).append(held)
        return True

    def waits(self, held: Held) -> bool:
        """Whether an answer waits."""
        first = held.generation.first
        return first is not None and held in self._waiting.get(first.id, ())

    def leave(self, held: Held) -> None:
        """One that waits has ended."""
        first = held.generation.first
        if first is not None:
            self._waiting[first.id].remove(held)

    def wake(self, first: Held) -> list[Held]:
        """The first answer has computed the prompt, or has ended: give those that waited for it."""
        return self._waiting.pop(first.generation.id, [])
