"""`aios bench step` on a tiny model: real steps are watched, and the figures hang together."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from aios_evals.replay_model import VOCABULARY
from aios_evals.step_bench.run import DTYPES, PATHS, run
from aios_evals.step_bench.stopwatch import Stopwatch, cheapest

ENGINE = {"rest", "reserve", "pack", "forward", "choose", "settle"}
KERNEL = ENGINE | {"schedule", "accept", "deliver", "orders", "front"}


def burn(seconds: float) -> None:
    ends_at = time.thread_time() + seconds
    while time.thread_time() < ends_at:
        pass


def test_the_innermost_part_is_charged() -> None:
    place = SimpleNamespace(inner=lambda: burn(0.02))
    place.outer = lambda: (burn(0.01), place.inner(), time.sleep(0.05))
    watch = Stopwatch({"beside": iter([1.0, 1.5]).__next__})
    with watch.watching([(place, "outer", "outside"), (place, "inner", "inside")]):
        watch.begin()
        place.outer()
        watch.keep()
    (spent,) = watch.steps
    assert 0.02 <= spent["inside"] < 0.025
    assert 0.01 <= spent["outside"] < 0.015  # asleep is not at work
    assert spent["beside"] == 0.5
    place.outer()
    assert watch.steps == [spent]


def test_whole_windows_are_compared() -> None:
    steps = [{"a": cost} for cost in (5.0, 9.0, 1.0, 30.0, 7.0, 7.0, 0.0)]
    assert cheapest(steps, 2) == {"a": 7.0}
    assert cheapest(steps, 2, share=1.0) == {"a": pytest.approx(59 / 6)}


def test_the_parts_of_a_step_are_measured() -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=2,
    )
    rows = run(batch=3, steps=48, model=LlamaForCausalLM(config).eval(), compile=False)
    for path in PATHS:
        for dtype in DTYPES:
            parts = {row["part"]: row for row in rows if (row["path"], row["dtype"]) == (path, dtype)}
            assert parts.keys() - {"step", "outside"} == (ENGINE if path == "engine" else KERNEL)
            step, outside = parts.pop("step"), parts.pop("outside")
            # Nobody hears of whole answers before their end: the loop may have nothing to do.
            assert all(row["us"] > 0 for part, row in parts.items() if part != "front")
            assert step["us"] == pytest.approx(sum(row["us"] for row in parts.values()))
            assert outside["us"] == pytest.approx(step["us"] - parts["forward"]["us"])
            assert sum(row["share"] for row in parts.values()) == pytest.approx(1.0)
