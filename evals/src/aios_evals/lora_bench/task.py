"""What a worker of the bench is asked for, and what it answers."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

Prompts = Sequence[Sequence[int]]


class Case(msgspec.Struct, frozen=True):
    """Requests that are answered with at most `batch` at once.

    Attributes:
        loras: different adapters that the requests have in turn; 0: none has one.
        batch: requests at once.
        requests: in all.
        rounds: that count, each with and without adapters.
    """

    loras: int
    batch: int
    requests: int
    rounds: int


class Task(msgspec.Struct, frozen=True):
    """All that one engine is to do.

    Attributes:
        model: folder of the model.
        dtype: `float32` or `bfloat16`.
        rank: of the adapters.
        registered: adapters that are loaded.
        cases: measured in turn in each round; the first one once before, to warm up.
        prompt: tokens of a prompt.
        new: tokens of an answer.
        compile: whether our engine compiles the model.
    """

    model: str
    dtype: str
    rank: int
    registered: int
    cases: list[Case]
    prompt: int
    new: int
    compile: bool

    def prompts(self, case: Case, turn: int, vocab: int) -> list[list[int]]:
        """Prompts of a round, the same for every engine and new to every prefix cache."""
        chooser = random.Random(f"{case}/{turn}")
        return [[chooser.randrange(vocab) for _ in range(self.prompt)] for _ in range(case.requests)]


class Round(msgspec.Struct, frozen=True):
    """CPU seconds of one case in one round, with its adapters and without; and of a median step that only decodes."""

    case: Case
    cpu_s: float
    base_cpu_s: float
    step_s: float | None
    base_step_s: float | None
    answers: list[list[int]]
    """With adapters."""


class Answer(msgspec.Struct, frozen=True):
    """What a worker found."""

    rounds: list[Round]
    versions: dict[str, str]
    load_s: float
    """CPU seconds to load an adapter, the mean."""
