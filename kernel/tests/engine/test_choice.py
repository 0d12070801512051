"""The compiled choice finds what numpy finds in masked logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_kernel.engine.torch.native import choice


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    if not choice.served(torch.zeros(1, 1)):
        pytest.skip("no C++ compiler here")


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 5),
    vocab=st.sampled_from([1, 5, 31, 32, 33, 64, 100, 1000]),
    allowed=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    levels=st.sampled_from([1, 3, 1000]),
    broken=st.sampled_from([None, float("nan"), float("inf"), float("-inf")]),
    seed=st.integers(0, 999),
)
def test_the_first_of_the_largest_that_are_allowed(
    rows: int, vocab: int, allowed: float, levels: int, broken: float | None, seed: int
) -> None:
    source = np.random.default_rng(seed)
    logits = source.integers(-levels, levels, (rows + 2, vocab)).astype(np.float32)
    if broken is not None:
        logits[source.integers(rows + 2), source.integers(vocab)] = broken
    chosen = source.permutation(rows + 2)[:rows]
    may = source.random((rows, -(-vocab // 32) * 32)) < allowed
    bits = np.packbits(may, axis=1, bitorder="little").view(np.int32)
    before = logits.copy()
    tokens, finite = choice.best(torch.from_numpy(logits), chosen.tolist(), torch.from_numpy(bits))
    masked = np.where(may[:, :vocab], logits[chosen], -np.inf)
    values = masked[np.arange(rows), masked.argmax(axis=1)]
    assert finite == np.isfinite(values).tolist()
    assert [token for token, fine in zip(tokens, finite, strict=True) if fine] == [
        token for token, fine in zip(masked.argmax(axis=1).tolist(), finite, strict=True) if fine
    ]
    assert np.array_equal(logits, before, equal_nan=True)
    for dtype in (torch.float32, torch.bfloat16):
        given = torch.from_numpy(logits).to(dtype)
        expected = given.float().numpy()
        tokens, finite = choice.best(given)
        assert tokens == expected.argmax(axis=1).tolist()
        assert finite == np.isfinite(expected[np.arange(rows + 2), tokens]).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_by_its_own_mask(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0], [9.0, 2.0, 2.0], [4.0, 0.0, 1.0], [1.0, 2.0, 0.0]], dtype=dtype)
    bits = torch.tensor([[0b110], [0b101], [0b000]], dtype=torch.int32)
    tokens, values = choice.best_of_each(logits, bits, [1, -1, 2, 0])
    assert tokens[:2] + tokens[3:] == [2, 0, 1]
    assert values == [3.0, 9.0, float("-inf"), 2.0]


@pytest.mark.parametrize("vocab", [3, 40])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_number_counts_although_it_is_barred(vocab: int, broken: float) -> None:
    logits, bits = torch.zeros(2, vocab), torch.full((1, 2), -2, dtype=torch.int32)
    logits[0, 0] = broken
    _, values = choice.best_of_each(logits, bits, [0, 0])
    assert np.isnan(values).tolist() == [True, False]
