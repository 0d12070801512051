"""The module that takes the place of a model's experts and computes with those that are in memory."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Generator, Sequence
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
        self, layer: int, chosen: NDArray[np.int64], names: Callable[[], NDArray[np.int64]] | None
    ) -> Generator[tuple[int, Slot]]:
        """The experts that a layer's router chose, [tokens, k], each once, in any order.

        `names` gives those that the next layer's router would choose for the same input.
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

    @torch.no_grad()
    def compute(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """See `forward`."""
        chosen = top_k_index.cpu().numpy()
        tokens, k = chosen.shape
        order, spans = _sorted(chosen)
        rows = hidden_states[_on(order // k, hidden_states)] if tokens > 1 else hidden_states.expand(k, -1)
        outputs = torch.empty_like(rows, memory_format=torch.contiguous_format)
        names = None if self.next_router is None else lambda: self._named(hidden_states, k)
        # An exception would keep the generator alive, and with it what it holds, as long as its traceback.
        with contextlib.closing(self.source.use(self.layer, chosen, names)) as experts:
            for expert, slot in experts:
                low, high = spans[expert]
                slot.apply(rows[low:high], self._gate, outputs[low:high])
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        weighted = outputs[_on(back, outputs)].view(tokens, k, -1) * top_k_weights[:, :, None]
        return weighted.sum(dim=1).to(hidden_states.dtype)

    def _named(self, hidden_states: Tensor, k: int) -> NDArray[np.int64]:
        """What the next layer's router would choose now, [tokens, k]."""
        assert self.next_router is not None
        return F.linear(hidden_states, self.next_router[0]).topk(k, dim=-1).indices.cpu().numpy()


_connected: weakref.WeakValueDictionary[int, CachedExperts] = weakref.WeakValueDictionary()
"""The modules in use, for compiled models: a compiled graph carries tensors and numbers, no objects."""


@torch.library.custom_op("aios::cached_experts", mutates_args=())
def opaque_experts(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, number: int) -> Tensor:
    """`CachedExperts` as one operation that a compiled model calls without looking inside."""
    return _connected[number].compute(hidden_states, top_k_index, top_k_weights)


@opaque_experts.register_fake
def _shape_of_experts(hidden_states: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(hidden_states)


def _sorted(chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], dict[int, tuple[int, int]]]:
    """Places `token * k + choice` in the order of their experts, and where among them those of each expert are."""
    flat = chosen.reshape(-1)
    order = flat.argsort(kind="stable")
    experts = flat[order]
    starts = [0, *(np.flatnonzero(experts[1:] != experts[:-1]) + 1).tolist(), len(flat)]
    return order, {int(experts[low]): (low, high) for low, high in itertools.pairwise(starts)}


def _on(places: NDArray[np.int64], like: Tensor) -> Tensor:
    return torch.from_numpy(places).to(like.device)


def experts_in(model: nn.Module) -> Sequence[CachedExperts]:
    """The modules of this kind in a model."""
    return [module for module in model.modules() if isinstance(module, CachedExperts)]
