"""What is measured: a workload as the new prompt tokens of every turn, the same for every engine."""

from __future__ import annotations

import random
from dataclasses import dataclass

WORKLOADS = ("decode", "prefill", "agents")
BATCHES = (1, 8, 32, 128)
LENGTHS = (128, 1024, 4096)
_PROMPT, _NEW = 96, 48
_AGENTS, _TURNS, _SYSTEM, _USER, _REPLY = 16, 6, 256, 32, 16


@dataclass(frozen=True, slots=True)
class Case:
    """One workload at one size.

    Attributes:
        workload: `decode` (96 prompt tokens, 48 generated), `prefill` (one token generated) or `agents` (16 agents,
            6 turns; 256 shared tokens, then a turn 32 new and 16 generated).
        batch: conversations at once.
        length: tokens of the longest prompt.
    """

    workload: str
    batch: int
    length: int

    @classmethod
    def decode(cls, batch: int) -> Case:
        """Short prompts, then generation."""
        return cls("decode", batch, _PROMPT)

    @classmethod
    def prefill(cls, length: int) -> Case:
        """One prompt."""
        return cls("prefill", 1, length)

    @classmethod
    def agents(cls) -> Case:
        """Growing conversations behind one system prompt."""
        return cls("agents", _AGENTS, _SYSTEM + _TURNS * _USER + (_TURNS - 1) * _REPLY)

    @property
    def n_tokens(self) -> int:
        """Generated a turn."""
        return {"decode": _NEW, "prefill": 1, "agents": _REPLY}[self.workload]

    def turns(self, vocab: int, seed: int, conversations: int) -> list[list[list[int]]]:
        """New prompt tokens, [turns][conversations][tokens].

        They differ between cases and seeds, so that no prefix cache knows them from before, and not with the number
        of conversations that an engine runs.
        """
        drawn = [self._conversation(vocab, seed, row) for row in range(conversations)]
        return [list(turn) for turn in zip(*drawn, strict=True)]

    def counted(self, conversations: int) -> int:
        """Tokens that count: prompt tokens of `prefill`, generated ones of the others."""
        if self.workload == "prefill":
            return self.length * conversations
        return self.n_tokens * conversations * (_TURNS if self.workload == "agents" else 1)

    def _conversation(self, vocab: int, seed: int, row: int) -> list[list[int]]:
        chooser = random.Random(f"{self}/{seed}/{row}")
        if self.workload != "agents":
            return [_draw(chooser, self.length, vocab)]
        turns = [_draw(chooser, _USER, vocab) for _ in range(_TURNS)]
        turns[0] = _draw(random.Random(f"system/{seed}"), _SYSTEM, vocab) + turns[0]
        return turns


def _draw(chooser: random.Random, n_tokens: int, vocab: int) -> list[int]:
    return [chooser.randrange(vocab) for _ in range(n_tokens)]
