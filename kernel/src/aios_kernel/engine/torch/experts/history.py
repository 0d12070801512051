"""What the router chose so far, and what it will choose: which experts to keep, and which to read ahead.

For every two layers that follow each other it is counted which experts the same token used in both. From the experts of
one layer that gives how likely each expert of the next is; what the next router names too early (`foresight`) counts as
well. For layers further on the share of the last passes counts in which each expert was used. Both become one measure,
the layers until an expert's next use, by which the cache evicts (what is farthest first, as Bélády would with the real
distances) and reads ahead (what is nearest first).
"""

from __future__ import annotations

from collections.abc import Callable

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
_STEP, _LEAST = 0.05, (-3.0, 12.0)
"""How far one expert that was read ahead moves the limit, and within what."""


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
        self._least = -1.0
        """Logarithm of the odds below which nothing is read ahead; moves so that `_PAYS` holds."""
        self._distances: Floats | None = None
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
        found = self._distances
        if found is None:
            found = self._distances = self._recency() if self.mode == "recency" else self._rank()
        return found

    def observe(self, layer: int, chosen: Ints, *, learn: bool = True) -> None:
        """Learn what a layer's router chose for the tokens of a pass.

        Args:
            layer: place among those with experts; they are observed in their order, pass after pass.
            chosen: experts of each token, [tokens, k].
            learn: whether to count what follows from what; if not, only what is needed to rank experts by their use.
        """
        sample = chosen[:: -(-len(chosen) // _SAMPLE)]
        uses = np.bincount(chosen.reshape(-1), minlength=self.experts)
        used = uses.nonzero()[0]
        self._clock += 1
        self._last_use[layer, used] = self._clock
        if self.mode == "predict":
            if learn:
                self._judge(layer, used)
                self._count(layer, sample)
                self._foresight.learn(layer, sample)
            else:
                self._tried.pop(layer, None)
            for shares, weight in ((self._slow, _SLOW), (self._fast, _FAST)):
                shares[layer] *= 1 - weight
                shares[layer, used] += weight
        self._before, self._predicted, self._distances = (layer, sample), None, None

    def predict(self, names: Callable[[], Ints] | None = None) -> None:
        """Work out what the layer behind the one that was observed last will use.

        Args:
            names: gives what its router names already for the tokens that were observed, [tokens, k].
        """
        if self.mode == "recency" or self._before is None:
            return
        layer, sample = self._before
        following = (layer + 1) % self.layers
        if names is not None:
            named = names()
            self._foresight.name(following, named[:: -(-len(named) // _SAMPLE)])
        self._predicted, self._distances = (following, self._likelihoods(layer, sample)), None

    def wishes(self, resident: NDArray[np.bool_]) -> list[int]:
        """Numbers of experts worth reading ahead by what was predicted, the likeliest first.

        Args:
            resident: by number, what is in memory already.
        """
        if self._predicted is None:
            return []
        following, likely = self._predicted
        first = following * self.experts
        odds = np.log(likely / (1 - likely))
        odds[resident[first : first + self.experts]] = -np.inf
        chosen = (odds >= self._least).nonzero()[0]
        chosen = chosen[np.argsort(-odds[chosen])].tolist()
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
            likeliest = np.argpartition(-self._predicted[1], len(used) - 1)[: len(used)]
            self.right += len({*likeliest.tolist()} & {*used.tolist()})
            self.guessed += len(used)
            self.by_chance += len(used) ** 2 / self.experts
        tried = self._tried.pop(layer, None)
        if not tried:
            return
        paid = len(tried.intersection(used.tolist()))
        step = _STEP * (len(tried) - paid) * _PAYS / (1 - _PAYS) - _STEP * paid
        self._least = float(np.clip(self._least + step, *_LEAST))

    def _count(self, layer: int, sample: Ints) -> None:
        self._uses[layer] += np.bincount(sample.reshape(-1), minlength=self.experts)
        self._seen[layer] += len(sample)
        before = self._before
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
        return np.clip(1 - np.prod(1 / (1 + odds), axis=0), 1e-6, 1 - 1e-6)

    def _rank(self) -> Floats:
        """Layers until each expert's next use, if each pass uses it with its likelihood."""
        layer = -1 if self._before is None else self._before[0]
        rarity = self.layers * (2 / np.maximum(self._slow + self._fast, 2e-3) - 1)
        distances = rarity + ((np.arange(self.layers) - layer - 1) % self.layers + 1.0)[:, None]
        predicted = self._predicted
        if predicted is not None:
            following, likely = predicted
            # Used in the next layer, or else as often as usual from then on.
            distances[following] = likely + (1 - likely) * (1 + self.layers + rarity[following])
        return distances.reshape(-1)

    def _recency(self) -> Floats:
        return (self._clock - self._last_use).reshape(-1)
