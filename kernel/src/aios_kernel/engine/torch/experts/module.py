"""The module that takes the place of a model's experts and computes with those that are in memory."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Generator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from aios_kernel.engine.torch.experts.forms import ExpertShape, Gate, Slot


class Source(Protocol):
    """Gives the experts that a layer needs, see `CachedMixture`."""

    def use(
        self, layer: int, chosen: NDArray[np.int64], named: NDArray[np.int64] | None
    ) -> Generator[tuple[int, Slot]]:
        """The experts that a layer's router chose, [tokens, k], each once, in any order.

        `named` are those that the next layer's router would choose for the same input.
        """
        ...


class CachedExperts(nn.Module):
    """The experts of one layer, which hold no weights: they come from the cache.

    Every expert's output is kept by token and choice, and added up in that order at the end: the sum does not depend on
    the order in which experts came into memory.

    Args:
        layer: place among the layers with experts.
        shape: of the experts.
        gate: of the model's own experts: activation and product of the two halves.
    """

    source: Source
    """Set once the model is loaded, as `number`, under which a compiled model finds the module."""
    number: int
    next_router: tuple[Tensor] | None = None
    """Weight of the next layer's router, [experts, hidden], if it has one that is applied to what its experts get."""

    def __init__(self, layer: int, shape: ExpertShape, gate: Gate) -> None:
        super().__init__()
        self.layer, self.shape = layer, shape
        self._gate = gate

    def connect(self, source: Source) -> None:
        """Take experts from here from now on."""
        self.source, self.number = source, id(self)
        _connected[self.number] = self

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """As the experts of transformers.

        Args:
            hidden_states: [tokens, hidden].
            top_k_index: experts chosen for each token, [tokens, k].
            top_k_weights: of each of them, [tokens, k].

        Returns:
            [tokens, hidden].

        Raises:
            EngineError: an expert could not be read.
        """
        if torch.compiler.is_compiling():
            return opaque_experts(hidden_states, top_k_index, top_k_weights, self.number)
        return self.compute(hidden_states, top_k_index, top_k_weights)

    def compute(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """See `forward`."""
        chosen = top_k_index.cpu().numpy()
        tokens, k = chosen.shape
        places = _places(chosen)
        outputs = hidden_states.new_empty(tokens * k, hidden_states.shape[1])
        # An exception would keep the generator alive, and with it what it holds, as long as its traceback.
        with contextlib.closing(self.source.use(self.layer, chosen, self._named(hidden_states, k))) as experts:
            for expert, slot in experts:
                at = torch.from_numpy(places[expert]).to(hidden_states.device)
                outputs[at] = slot.apply(hidden_states[at // k], self._gate)
        weighted = outputs.view(tokens, k, -1) * top_k_weights[:, :, None]
        return weighted.sum(dim=1).to(hidden_states.dtype)

    def _named(self, hidden_states: Tensor, k: int) -> NDArray[np.int64] | None:
        """What the next layer's router would choose now."""
        if self.next_router is None:
            return None
        scores = F.linear(hidden_states, self.next_router[0])
        return scores.topk(k, dim=-1).indices.cpu().numpy()


_connected: weakref.WeakValueDictionary[int, CachedExperts] = weakref.WeakValueDictionary()
"""The modules in use, for compiled models: a compiled graph carries tensors and numbers, no objects."""


@torch.library.custom_op("aios::cached_experts", mutates_args=())
def opaque_experts(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, number: int) -> Tensor:
    """`CachedExperts` as one operation that a compiled model calls without looking inside."""
    return _connected[number].compute(hidden_states, top_k_index, top_k_weights)


@opaque_experts.register_fake
def _shape_of_experts(hidden_states: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(hidden_states)


def _places(chosen: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """By expert, where it was chosen: `token * k + choice`, rising."""
    flat = chosen.reshape(-1)
    order = np.argsort(flat, kind="stable")
    experts, starts = np.unique(flat[order], return_index=True)
    return dict(zip(experts.tolist(), np.split(order, starts[1:]), strict=True))


def experts_in(model: nn.Module) -> Sequence[CachedExperts]:
    """The modules of this kind in a model."""
    return [module for module in model.modules() if isinstance(module, CachedExperts)]
