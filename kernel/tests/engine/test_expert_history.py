"""What is learned from the router's choices, and what is made of it."""

from __future__ import annotations

import numpy as np
import pytest

from aios_kernel.engine.torch.experts.history import RouterHistory

LAYERS, EXPERTS, K = 4, 16, 2
NONE = np.zeros(LAYERS * EXPERTS, dtype=bool)
"""Nothing is in memory."""


def feed(history: RouterHistory, passes: int, tokens: int, follow: float, seed: int = 0) -> None:
    """Passes in which a token's experts of one layer follow, with this likelihood, from those of the layer before."""
    chooser = np.random.default_rng(seed)
    steps = np.random.default_rng(1).permuted(np.tile(np.arange(EXPERTS), (LAYERS, 1)), axis=1)
    for _ in range(passes):
        chosen = np.stack([chooser.choice(EXPERTS, K, replace=False) for _ in range(tokens)])
        for layer in range(LAYERS):
            history.observe(layer, chosen)
            history.predict()
            following = steps[layer][chosen]
            for row in range(tokens):
                if chooser.random() > follow:
                    following[row] = chooser.choice(EXPERTS, K, replace=False)
            chosen = following


def test_what_follows_from_what_is_learned() -> None:
    history = RouterHistory(LAYERS, EXPERTS)
    feed(history, 300, tokens=1, follow=1.0)
    before = history.right, history.guessed
    feed(history, 50, tokens=1, follow=1.0, seed=1)
    right, guessed = history.right - before[0], history.guessed - before[1]
    # Three of four layers follow from the one before; the first is drawn anew.
    assert right / guessed > 0.65


def test_nothing_is_learned_from_chance_and_hardly_anything_read_ahead() -> None:
    history = RouterHistory(LAYERS, EXPERTS)
    feed(history, 400, tokens=1, follow=0.0)
    assert history.hit_rate == pytest.approx(history.by_chance / history.guessed, abs=0.08)
    assert len(history.wishes(NONE)) <= K


def test_wishes_name_the_likeliest_of_the_next_layer() -> None:
    history = RouterHistory(LAYERS, EXPERTS)
    for _ in range(50):
        for layer in range(LAYERS):
            history.observe(layer, np.array([[layer, layer + 4]]))
    history.observe(0, np.array([[0, 4]]))
    assert history.wishes(NONE) == []
    history.predict()
    assert sorted(history.wishes(NONE)) == [EXPERTS + 1, EXPERTS + 5]
    held = NONE.copy()
    held[EXPERTS + 1] = True
    assert history.wishes(held) == [EXPERTS + 5]


def test_what_was_just_used_is_farthest_when_everything_is_used_in_turn() -> None:
    """A prefill uses all experts of one layer after the other: LRU would keep none that is needed next."""
    history = RouterHistory(LAYERS, EXPERTS)
    everything = np.arange(EXPERTS).reshape(-1, K)
    for _ in range(200):
        for layer in range(LAYERS):
            history.observe(layer, everything)
    for layer in range(2):
        history.observe(layer, everything)
    distances = history.distances().reshape(LAYERS, EXPERTS).mean(axis=1)
    assert distances.argsort().tolist() == [2, 3, 0, 1]


def test_recency_is_lru() -> None:
    history = RouterHistory(1, 4, "recency")
    for chosen in ([[0, 1]], [[2, 3]], [[0, 2]]):
        history.observe(0, np.array(chosen))
    assert history.distances().tolist() == [0, 2, 0, 1]
    assert history.wishes(NONE) == []


def test_old_counts_fade() -> None:
    history = RouterHistory(2, 4)
    for chosen in (0, 1):
        for _ in range(300):
            history.observe(0, np.full((64, 1), 0))
            history.observe(1, np.full((64, 1), chosen))
    history.observe(0, np.array([[0]]))
    history.predict()
    assert history.wishes(NONE) == [4 + 1]


def test_the_least_used() -> None:
    history = RouterHistory(2, 4)
    history.observe(0, np.array([[0, 1], [0, 2]]))
    history.observe(1, np.array([[3, 2], [3, 2]]))
    assert history.least_used(0.5) == [1, 3, 4, 5]
    assert history.least_used(0.0) == []


@pytest.mark.parametrize(("trusted", "least", "most"), [(0.9, 0.7, 1.0), (0.0, 0.05, 0.25)])
def test_what_the_next_router_names_counts_as_far_as_it_was_right(trusted: float, least: float, most: float) -> None:
    """Nothing else tells which experts come next: they are drawn."""
    chooser = np.random.default_rng(0)
    history = RouterHistory(LAYERS, EXPERTS)
    chosen = np.stack([chooser.choice(EXPERTS, K, replace=False)])
    for passes in range(400):
        if passes == 200:
            history.right = history.guessed = 0
        for layer in range(LAYERS):
            following = np.stack([chooser.choice(EXPERTS, K, replace=False)])
            named = following if chooser.random() < trusted else chooser.choice(EXPERTS, (1, K), replace=False)
            history.observe(layer, chosen)
            history.predict(lambda named=named: named)
            chosen = following
    assert least < history.hit_rate < most
