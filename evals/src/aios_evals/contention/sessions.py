"""Recorded coding-agent sessions, scaled down so that a small model on a CPU meets the same contention."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios_kernel.errors import NotFound

_FILE = Path("agent_sessions") / "sessions.jsonl.gz"
_RECORDED_BLOCK = 64
"""The recordings count shared tokens in blocks of so many."""
_LEAST_OUTPUT, _MOST_OUTPUT = 2, 48


@dataclass(frozen=True, slots=True)
class Scale:
    """What lengths (tokens) and think times (seconds) are divided by, how many calls of a session are run, and its
    longest context in tokens after the division; a session is cut before the first call that exceeds it.
    """

    lengths: int = 96
    thinks: float = 60.0
    calls: int = 8
    window: int = 3000
    longest_think_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """One call, scaled. Counts are in tokens."""

    prompt: int
    output: int
    parent: int
    """The earlier call that this one goes on from; -1: none."""
    shared: int | None
    """How much of that call's prompt is kept where the history was rewritten; None: all of it, and its answer."""
    think_s: float


@dataclass(frozen=True, slots=True)
class Session:
    """One program: calls one after the other, with its think time before each."""

    name: str
    calls: Sequence[Call]

    @property
    def longest(self) -> int:
        """Its longest context."""
        return max(call.prompt + call.output for call in self.calls)

    @property
    def needed(self) -> int:
        """Tokens that must be computed when nothing that was computed is ever lost."""
        total = 0
        for number, call in enumerate(self.calls):
            total += call.prompt - self.kept(number) + call.output
        return total

    def prompt(self, number: int, said: Sequence[Sequence[int]], vocabulary: int) -> list[int]:
        """The prompt of a call from the sequences (prompt and answer) of the calls before; the rest is random text.

        The text is the same in every run as long as the answers are.
        """
        call = self.calls[number]
        kept = [*said[call.parent][: self.kept(number)]] if call.parent >= 0 else []
        fresh = random.Random(f"{self.name}/{number}")
        return [*kept, *(fresh.randrange(8, vocabulary) for _ in range(call.prompt - len(kept)))]

    def kept(self, number: int) -> int:
        """Tokens of a call's prompt that an earlier call has computed."""
        call = self.calls[number]
        if call.parent < 0:
            return 0
        before = self.calls[call.parent]
        return min(before.prompt + before.output if call.shared is None else call.shared, call.prompt - 1)


def load(folder: Path, count: int, scale: Scale) -> list[Session]:
    """The first `count` sessions that are long enough. Raises NotFound when the recordings are not there."""
    path = folder / _FILE
    try:
        with gzip.open(path, "rt") as lines:
            found: list[Session] = []
            for line in lines:
                session = _scaled(json.loads(line), scale)
                if len(session.calls) >= scale.calls:
                    found.append(session)
                if len(found) == count:
                    return found
    except OSError as error:
        raise NotFound(
            f"the recorded sessions are not at {path}: {error}",
            fix="get callanjfox/kv-cache-tester (Apache-2.0), compacted; name its folder by --data or AIOS_DATA",
        ) from error
    raise NotFound(f"{path} has only {len(found)} sessions of {scale.calls} calls", fix="ask for fewer programs")


def _scaled(raw: dict[str, Any], scale: Scale) -> Session:
    plain = [call for call in raw["calls"] if isinstance(call, list)]
    calls: list[Call] = []
    for _, prompt, output, parent, shared, think, *_ in plain[: scale.calls]:
        whole = parent >= 0 and shared > plain[parent][1] - _RECORDED_BLOCK
        call = Call(
            prompt=max(16, prompt // scale.lengths),
            output=min(_MOST_OUTPUT, max(_LEAST_OUTPUT, output // scale.lengths)),
            parent=parent,
            shared=None if whole else shared // scale.lengths,
            think_s=min(scale.longest_think_s, think / scale.thinks),
        )
        if call.prompt + call.output > scale.window:
            break
        calls.append(call)
    return Session(str(raw["id"]), calls)
