"""How far the next layer's router can be trusted when it is asked too early.

A layer adds little to what it is given, so that the next layer's router, applied to the input of this layer's experts,
often names the experts that it will choose (Eliseev and Mazur 2023). How often is counted, layer by layer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FADE = 0.999
"""What a count is worth after another pass."""


class Foresight:
    """Counts of one model.

    Args:
        layers: with experts.
        experts: a layer.
    """

    def __init__(self, layers: int, experts: int) -> None:
        self._experts = experts
        self._used = np.ones((layers, 2))
        """Of the experts that tokens used in a layer: how many were named before, and how many not..."""
        self._unused = np.ones((layers, 2))
        """...and of those that they did not use."""
        self._named: tuple[int, Ints] | None = None

    def name(self, layer: int, named: Ints) -> None:
        """Note what a layer's router named too early, [tokens, k]."""
        self._named = layer, named

    def learn(self, layer: int, chosen: Ints) -> None:
        """Compare it with what the router chose then, for the same tokens."""
        named, self._named = self._named, None
        if named is None or named[0] != layer or named[1].shape != chosen.shape:
            return
        right, all_named = int((named[1][:, :, None] == chosen[:, None, :]).sum()), chosen.size
        rest = len(chosen) * self._experts - all_named
        self._used[layer] = self._used[layer] * _FADE + (right, all_named - right)
        self._unused[layer] = self._unused[layer] * _FADE + (all_named - right, rest - (all_named - right))

    def evidence(self, layer: int) -> Floats | float:
        """By token and expert, [tokens, experts]: logarithm of how much likelier it is used for what was named."""
        if self._named is None or self._named[0] != layer:
            return 0.0
        used = self._used[layer] / self._used[layer].sum()
        unused = self._unused[layer] / self._unused[layer].sum()
        if_named, if_not = np.log(used / unused)
        named = self._named[1]
        found = np.full((len(named), self._experts), if_not)
        np.put_along_axis(found, named, if_named, axis=1)
        return found
