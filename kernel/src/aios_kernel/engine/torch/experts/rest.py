"""Whether predicting experts pays at present: it costs time in every layer, and saves some of the waiting."""

from __future__ import annotations

_FADE = 0.98
"""What a layer counts after another one: about fifty layers are remembered."""
_SLEEPS, _WAKES = 1.5, 2.75
"""Waiting, in what predicting costs, below which it rests and above which it works again. Reading ahead saves a third
to a half of the waiting (`aios bench moe`), so that between the two either is right."""
_MOST = 100.0
"""What one layer's waiting counts at most: a prompt waits for nearly all experts, and says little of what follows."""
_REFRESH = 16
"""Passes of which one is learned from and predicted while it rests: what is used changes, and so does the cost."""
_SETTLES = 64
"""Layers that are looked at before it may rest."""


class Rest:
    """Decides pass by pass whether the router is learned from and its next choices are predicted.

    That changes how long a step takes, and never what it computes. Times are arguments, in seconds.

    Attributes:
        working: it is so in this pass.
    """

    def __init__(self) -> None:
        self.working = True
        self._resting = False
        self._cost_s = self._waited_s = 0.0
        self._layers = self._passes = 0

    def begin_pass(self) -> None:
        """The first layer is about to run."""
        self._passes += 1
        if self._layers >= _SETTLES:
            self._resting = self._waited_s < (_WAKES if self._resting else _SLEEPS) * self._cost_s
        self.working = not self._resting or self._passes % _REFRESH == 0

    def end_layer(self, cost_s: float, waited_s: float) -> None:
        """A layer has run.

        Args:
            cost_s: what learning and predicting took; counts in passes that are `working`.
            waited_s: how long there was nothing to do but wait for experts.
        """
        self._layers += 1
        if self.working:
            self._cost_s = _mean(self._cost_s, cost_s) if self._cost_s else cost_s
        self._waited_s = _mean(self._waited_s, min(waited_s, _MOST * self._cost_s))


def _mean(before: float, now: float) -> float:
    return _FADE * before + (1 - _FADE) * now
