"""The contention bench: how sessions are scaled and rebuilt, and a run of it on the fake engine."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from aios_evals.contention.run import VOCABULARY, Tally, row_of
from aios_evals.contention.served import Answer, Kernel
from aios_evals.contention.sessions import Scale, load
from aios_kernel.engine.fake import fake_model
from aios_kernel.errors import NotFound
from aios_kernel.scheduler.fifo import Fifo

SCALE = Scale(lengths=10, thinks=1000.0, calls=3, window=500)
CALLS = [
    [0.0, 1000, 100, -1, 0, 0.0, 1.0, "tool_use"],
    [9.0, 1500, 50, 0, 960, 5.0, 1.0, "tool_use"],  # goes on from the first
    [20.0, 1200, 80, 1, 640, 2.0, 1.0, "end_turn"],  # its history was rewritten
    [30.0, 9000, 80, 2, 1150, 2.0, 1.0, "end_turn"],  # beyond the cut
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "agent_sessions").mkdir()
    with gzip.open(tmp_path / "agent_sessions" / "sessions.jsonl.gz", "wt") as out:
        for name in ("a", "b"):
            out.write(json.dumps({"id": name, "tool_tokens": 1, "system_tokens": 1, "calls": CALLS}) + "\n")
        out.write(json.dumps({"id": "short", "calls": CALLS[:1]}) + "\n")
    return tmp_path


def test_sessions_are_divided_and_cut(data: Path) -> None:
    first, second = load(data, 2, SCALE)
    assert (first.name, second.name) == ("a", "b")
    assert [(call.prompt, call.output) for call in first.calls] == [(100, 10), (150, 5), (120, 8)]
    assert first.longest == 155
    with pytest.raises(NotFound, match="only 2 sessions"):
        load(data, 3, SCALE)
    with pytest.raises(NotFound, match="recorded sessions"):
        load(data / "nowhere", 1, SCALE)


def test_prompts_go_on_from_what_was_answered(data: Path) -> None:
    (session,) = load(data, 1, SCALE)
    said: list[list[int]] = []
    for number, call in enumerate(session.calls):
        prompt = session.prompt(number, said, 1000)
        assert len(prompt) == call.prompt
        assert prompt == session.prompt(number, said, 1000)
        said.append([*prompt, *[number] * call.output])
    assert said[1][:110] == said[0]
    assert said[2][:64] == said[1][:64]
    assert said[2][64:80] != said[1][64:80]
    assert session.needed == 110 + (150 - 110 + 5) + (120 - 64 + 8)


def test_a_run_counts_every_call_once(data: Path) -> None:
    sessions = load(data, 2, SCALE)

    class Blind(Kernel):
        """The fake engine knows no prefix cache."""

        asked = 0

        def ask(self, program: str, prompt: list[int], n_tokens: int) -> Answer:
            Blind.asked += 1
            return super().ask(program, prompt, n_tokens)

    model: Any = fake_model(kv_tokens=320)
    model.codec.end_tokens = frozenset()
    model.codec.encode(" ".join(f"v{number}" for number in range(VOCABULARY)))  # it knows the words that it has seen
    row = row_of(lambda: Blind(model, Fifo({}), 1 << 30), sessions)
    assert Blind.asked == 6
    assert row["computed_tokens"] == 2 * (100 + 10 + 150 + 5 + 120 + 8)
    assert (row["programs"], row["cached_tokens"]) == (2, 0)
    assert 0 < row["p50_s"] <= row["p95_s"] <= row["makespan_s"] + 1e-3


def test_a_program_that_fails_fails_the_run(data: Path) -> None:
    model: Any = fake_model(kv_tokens=64)  # too small for any of them
    model.codec.end_tokens = frozenset()
    with pytest.raises(RuntimeError, match="2 programs failed"):
        row_of(lambda: Kernel(model, Fifo({}), 1 << 30), load(data, 2, SCALE))
    assert Tally().failed == []
