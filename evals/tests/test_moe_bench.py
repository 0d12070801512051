"""`aios bench moe` on a tiny mixture: real tokens are decoded, and the figures hang together; the bound is one."""

from __future__ import annotations

import random
from collections import OrderedDict
from pathlib import Path

import pytest

from aios_evals.moe_bench.bound import fewest_reads
from aios_evals.moe_bench.run import Plan, run
from aios_evals.moe_bench.trained import Size


def lru_reads(asked: list[list[int]], capacity: int) -> int:
    held: OrderedDict[int, None] = OrderedDict()
    reads = 0
    for number in (number for numbers in asked for number in numbers):
        if number not in held:
            reads += 1
            if len(held) == capacity:
                held.popitem(last=False)
        held[number] = None
        held.move_to_end(number)
    return reads


def least_reads(asked: tuple[int, ...], held: frozenset[int], capacity: int) -> int:
    """Every way to evict, tried."""
    if not asked:
        return 0
    first, rest = asked[0], asked[1:]
    if first in held:
        return least_reads(rest, held, capacity)
    if len(held) < capacity:
        return 1 + least_reads(rest, held | {first}, capacity)
    return 1 + min(least_reads(rest, held - {victim} | {first}, capacity) for victim in held)


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_is_the_least_that_any_order_of_eviction_needs(seed: int) -> None:
    chooser = random.Random(seed)
    asked = [[chooser.randrange(5)] for _ in range(9)]
    capacity = chooser.randint(1, 3)
    held = frozenset(chooser.sample(range(5), chooser.randint(0, capacity)))
    assert fewest_reads(asked, capacity, held) == least_reads(tuple(n for [n] in asked), held, capacity)


@pytest.mark.parametrize("capacity", [1, 4, 16, 64])
def test_the_bound_is_below_lru(capacity: int) -> None:
    chooser = random.Random(capacity)
    asked = [chooser.sample(range(40), 3) for _ in range(200)]
    fewest = fewest_reads(asked, capacity)
    assert len({number for numbers in asked for number in numbers}) <= fewest <= lru_reads(asked, capacity)


def test_a_tiny_mixture_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    size = Size(layers=2, hidden=32, experts=8, chosen=2, width=32, vocab=64)
    rows = run(Plan(size, ("topics",), (1, 2), tokens=4, rounds=2, learn=16, bytes_per_s=1e9))
    assert len(rows) == 2 * 9
    for row in rows:
        assert row["tokens_per_s"] > 0
        if row["mode"] == "predict_int8":
            assert row["int8_logit_difference"] > 0
            assert row["int8_perplexity_ratio"] >= 1
            continue
        assert row["same_choices"] == 1.0
        if row["mode"] == "plain":
            continue
        assert 0 <= row["found"] + row["on_the_way"] <= 1.001
        assert row["efficiency"] > 0
        if row["resident"] == 1.0:
            assert row["read_mb_per_token"] < 0.1
        if "predicted" in row:  # a predictor that rests, since nothing is waited for, names none
            assert (row["mode"], row["resident"] < 1) == ("predict", True)
            assert 0 <= row["predicted_by_chance"] <= 1
