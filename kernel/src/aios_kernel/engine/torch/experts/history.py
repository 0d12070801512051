"""What the router chose so far, and what it will choose: which experts to keep, and which to read ahead.

For every two layers that follow each other it is counted which experts the same token used in both. From the experts of
one layer that gives how likely each expert of the next is; what the next router names too early (`foresight`) counts as
well. For layers further on the share of the last passes counts in which each expert was used. Both become one measure,
the layers until an expert's next use, by which the cache evicts (what is farthest first, as Bélády would with the real
distances) and reads ahead (what is nearest first).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aios_kernel.engine.expert_options import Mode
from aios_kernel.engine.torch.experts.foresight import Foresight

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PRIOR = 4.0
"""Weight of an expert's general share beside what was counted with a certain expert before it, in tokens."""
_WINDOW = 8192
"""Tokens after which counts are halved, so that they follow what is served."""
_SLOW, _FAST = 0.02, 0.3
"""How much a pass counts in the two shares of uses: what is used in general, and what is used now."""
_SAMPLE = 64
"""Tokens of a pass that are looked at: with more, nearly every expert is used."""
_TRUST, _RECENT = 0.75, 0.5
"""How much the experts of the layer before count as evidence, which they are not independently of each other (naive
Bayes would have 1), and how much it counts that an expert was used more of late than in general."""
_PAYS = 0.5
"""Share of what is read ahead that must turn out to be used."""
_STEP = 0.01


class RouterHistory:
    """Counts and predictions of one model; observed by the engine's thread, asked by any.

    Args:
        layers: with experts.
        experts: a layer.
        mode: with `recency` nothing is predicted, and what was used last is evicted last (LRU).
    """

    def __init__(self, layers: int, experts: int, mode: Mode = "predict") -> None:
        self.layers, self.experts, self.mode = layers, experts, mode
        self._pairs = np.zeros((layers, experts, experts))
        """Tokens that used one expert in a layer and another in the next one, the last layer's next being the first."""
        self._uses = np.zeros((layers, experts))
        """Tokens that used an expert."""
        self._slow = np.full((layers, experts), 0.5)
        self._fast = np.full((layers, experts), 0.5)
        self._seen = np.zeros(layers)
        self._clock = 0
        self._last_use = np.full((layers, experts), -1.0)
        self._foresight = Foresight(layers, experts)
        self._before: tuple[int, Ints] | None = None
        self._predicted: tuple[int, Floats] | None = None
        self._tried: dict[int, set[int]] = {}
        """By layer: experts that were asked to be read ahead for its next turn."""
        self._least = 0.3
        """Likelihood below which nothing is read ahead; moves so that `_PAYS` holds."""
        self._distances = np.full(layers * experts, float(layers))
        self.right = 0
        """Experts used that were among as many predicted likeliest..."""
        self.guessed = 0
        """...of all used where there was a prediction and not every expert was used..."""
        self.by_chance = 0.0
        """...and how many of them a blind guess would have found."""

    @property
    def hit_rate(self) -> float:
        """Share of the used experts that were predicted, taking as many of the likeliest as were used."""
        return self.right / max(1, self.guessed)

    def distances(self) -> Floats:
        """See `contracts.Ranking`; by number, `layer * experts + expert`."""
        return self._distances

    def observe(self, layer: int, chosen: Ints, named: Ints | None = None) -> None:
        """Learn what a layer's router chose for the tokens of a pass, and rank all experts by it.

        Args:
            layer: place among those with experts; they are observed in their order, pass after pass.
            chosen: experts of each token, [tokens, k].
            named: experts that the next layer's router names for them already, [tokens, k].
        """
        used = np.unique(chosen)
        self._clock += 1
        self._last_use[layer, used] = self._clock
        if self.mode == "recency":
            self._distances = (self._clock - self._last_use).reshape(-1)
            return
        self._judge(layer, used)
        apart = -(-len(chosen) // _SAMPLE)
        sample = chosen[::apart]
        self._count(layer, sample)
        self._foresight.learn(layer, sample)
        for shares, weight in ((self._slow, _SLOW), (self._fast, _FAST)):
            shares[layer] *= 1 - weight
            shares[layer, used] += weight
        following = (layer + 1) % self.layers
        if named is not None:
            self._foresight.name(following, named[::apart])
        self._predicted = following, self._likelihoods(layer, sample)
        self._rank(layer)

    def wishes(self, resident: NDArray[np.bool_]) -> list[int]:
        """Numbers of experts worth reading ahead now that a layer was observed, the likeliest first.

        Args:
            resident: by number, what is in memory already.
        """
        if self.mode == "recency" or self._predicted is None:
            return []
        following, likely = self._predicted
        first = following * self.experts
        open_to = np.where(resident[first : first + self.experts], 0.0, likely)
        chosen = [int(expert) for expert in np.argsort(-open_to) if open_to[expert] >= self._least]
        self._tried[following] = set(chosen)
        return [first + expert for expert in chosen]

    def least_used(self, share: float) -> list[int]:
        """Numbers of the experts of each layer that fewest tokens used, this share of them."""
        n = round(share * self.experts)
        order = np.argsort(self._uses, axis=1, kind="stable")[:, :n]
        return [layer * self.experts + int(expert) for layer in range(self.layers) for expert in np.sort(order[layer])]

    def _judge(self, layer: int, used: Ints) -> None:
        """Compare what a layer used with what was predicted for it."""
        if self._predicted is not None and self._predicted[0] == layer and len(used) < self.experts:
            likeliest = np.argsort(-self._predicted[1], kind="stable")[: len(used)]
            self.right += len({*likeliest.tolist()} & {*used.tolist()})
            self.guessed += len(used)
            self.by_chance += len(used) ** 2 / self.experts
        tried = self._tried.pop(layer, set[int]())
        paid = len(tried.intersection(used.tolist()))
        step = _STEP * (len(tried) - paid) * _PAYS / (1 - _PAYS) - _STEP * paid
        self._least = float(np.clip(self._least + step, 0.05, 0.95))

    def _count(self, layer: int, sample: Ints) -> None:
        self._uses[layer] += np.bincount(sample.reshape(-1), minlength=self.experts)
        self._seen[layer] += len(sample)
        before, self._before = self._before, (layer, sample)
        if before is not None and (before[0] + 1) % self.layers == layer and len(before[1]) == len(sample):
            np.add.at(self._pairs[before[0]], (before[1][:, :, None], sample[:, None, :]), 1.0)
        if self._seen[layer] > _WINDOW:
            self._seen[layer] /= 2
            self._uses[layer] /= 2
            self._pairs[layer] /= 2

    def _likelihoods(self, layer: int, sample: Ints) -> Floats:
        """How likely each expert of the next layer is used by at least one of the tokens, [experts]."""
        following = (layer + 1) % self.layers
        k = sample.shape[1]
        share = np.minimum((self._uses[following] + k / self.experts) / (self._seen[following] + 1), 0.99)
        counted = self._pairs[layer][sample] + _PRIOR * share
        likely = counted / (self._uses[layer][sample] + _PRIOR)[:, :, None]
        lately = (self._fast[following] + 0.05) / (self._slow[following] + 0.05)
        evidence = _TRUST * np.log(likely / share).sum(axis=1) + _RECENT * np.log(lately)
        evidence = evidence + self._foresight.evidence(following)
        odds = share / (1 - share) * np.exp(evidence)
        return 1 - np.prod(1 / (1 + odds), axis=0)

    def _rank(self, layer: int) -> None:
        """Layers until each expert's next use, if each pass uses it with its likelihood."""
        share = np.clip((self._slow + self._fast) / 2, 1e-3, 1.0)
        ahead = (np.arange(self.layers) - layer - 1) % self.layers + 1.0
        distances = ahead[:, None] + self.layers * (1 - share) / share
        if self._predicted is not None:
            following, likely = self._predicted
            likely = np.clip(likely, 1e-3, 1.0)
            # Used in the next layer, or else as often as usual from then on.
            later = 1 + self.layers / share[following]
            distances[following] = likely + (1 - likely) * later
        self._distances = distances.reshape(-1)
