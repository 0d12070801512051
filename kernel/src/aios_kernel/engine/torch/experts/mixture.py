"""All experts of a model together: where they are stored, which are in memory, and what is known of their use."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from aios_kernel.engine.expert_options import Mode
from aios_kernel.engine.torch.experts.cache import ExpertCache
from aios_kernel.engine.torch.experts.cold import ColdExperts
from aios_kernel.engine.torch.experts.forms import ExpertShape, FullSlot, Int8Slot, Slot, int8_bytes
from aios_kernel.engine.torch.experts.history import RouterHistory
from aios_kernel.engine.torch.experts.rest import Rest
from aios_kernel.engine.torch.experts.transfer import Store, Transfer
from aios_kernel.syscalls import ExpertStatus


@dataclass(frozen=True, slots=True)
class MixtureShape:
    """Of a model's experts: in how many layers, their own shape, and the dtype that is computed in."""

    layers: int
    expert: ExpertShape
    dtype: torch.dtype

    @property
    def count(self) -> int:
        """Experts in all layers."""
        return self.layers * self.expert.count

    @property
    def expert_bytes(self) -> int:
        """Of one expert in memory, in full precision."""
        return self.expert.numbers * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class StoredExperts:
    """Where a mixture's experts are.

    Attributes:
        store: to read them from.
        dtype: there, of those in full precision.
        digest: of these.
        cold: experts that are there in int8; None: all are in full precision.
    """

    store: Store
    dtype: torch.dtype
    digest: str
    cold: ColdExperts | None = None

    @property
    def fingerprint(self) -> str:
        """Of what is computed with them, whatever the size of the cache."""
        return self.digest if self.cold is None else f"{self.digest}:int8:{self.cold.digest}"


class _MixtureSlots:
    """See `contracts.Slots`."""

    def __init__(self, stored: StoredExperts, shape: MixtureShape, device: torch.device) -> None:
        self._stored, self._shape, self._device = stored, shape, device
        self._transfer = Transfer(stored.store, device)
        self.load, self.release = self._transfer.load, self._transfer.release

    def size(self, number: int) -> int:
        return int8_bytes(self._shape.expert) if self._cold(number) else self._shape.expert_bytes

    def make(self, number: int) -> Slot:
        shape, device = self._shape, self._device
        if self._cold(number):
            slot: Slot = Int8Slot(shape.expert, shape.dtype, device)
        else:
            slot = FullSlot(shape.expert, shape.dtype, self._stored.dtype, device)
        self.release(slot)  # on a CUDA device its memory may have been another slot's until now
        return slot

    def drop(self, slot: Slot) -> None:
        slot.drop()

    def _cold(self, number: int) -> bool:
        return self._stored.cold is not None and number in self._stored.cold


class CachedMixture:
    """See `module.Source`. An expert's number is `layer * shape.expert.count + expert`.

    Args:
        stored: the experts.
        shape: of the mixture.
        device: to compute on.
        budget: bytes of the cache; see `cache_bytes`.
        mode: see `ExpertOptions`.

    Raises:
        ConfigError: the budget holds no expert.
    """

    def __init__(
        self, stored: StoredExperts, shape: MixtureShape, device: torch.device, budget: int, mode: Mode = "predict"
    ) -> None:
        self.stored, self.shape = stored, shape
        self.history = RouterHistory(shape.layers, shape.expert.count, mode)
        self.rest = Rest()
        slots = _MixtureSlots(stored, shape, device)
        self.cache: ExpertCache[Slot] = ExpertCache(shape.count, budget, slots, self.history)

    def use(
        self, layer: int, chosen: NDArray[np.int64], names: Callable[[], NDArray[np.int64]] | None = None
    ) -> Generator[tuple[int, Slot]]:
        """See `module.Source`."""
        if layer == 0:
            self.rest.begin_pass()
        first = layer * self.shape.expert.count
        needed = sorted({*(first + chosen).reshape(-1).tolist()})
        began, waited = time.perf_counter(), self.cache.counts.waited_s
        wishes = self._foresee(layer, chosen, needed, names)
        cost = time.perf_counter() - began
        with contextlib.closing(self.cache.each(needed, wishes)) as experts:
            for number, slot in experts:
                yield number - first, slot
        self.rest.end_layer(cost, self.cache.counts.waited_s - waited)

    def _foresee(
        self,
        layer: int,
        chosen: NDArray[np.int64],
        needed: Sequence[int],
        names: Callable[[], NDArray[np.int64]] | None,
    ) -> Sequence[int]:
        """Learn what was chosen; give the numbers of experts to read ahead, if it pays to ask."""
        working = self.rest.working
        self.history.observe(layer, chosen, learn=working)
        if not working:
            return ()
        count, resident = self.shape.expert.count, self.cache.resident
        following = (layer + 1) % self.shape.layers * count
        if not resident[needed].all() or not resident[following : following + count].all():
            self.history.predict(names)
        return self.history.wishes(resident)

    @property
    def unused_bytes(self) -> int:
        """What the cache may still take."""
        return self.cache.budget - self.cache.taken_bytes

    def status(self) -> ExpertStatus:
        """What it holds and did so far."""
        counts, cold = self.cache.counts, self.stored.cold
        loss = None if cold is None else cold.loss
        return ExpertStatus(
            experts=self.shape.count,
            resident=int(self.cache.resident.sum()),
            cache_bytes=self.cache.budget,
            used_bytes=self.cache.taken_bytes,
            all_bytes=self.shape.count * self.shape.expert_bytes,
            hits=counts.hits,
            late=counts.late,
            misses=counts.misses,
            prefetched=counts.prefetched,
            bytes_read=counts.bytes_read,
            failed_reads=counts.failed,
            waited_s=counts.waited_s,
            predictor_hit_rate=self.history.hit_rate,
            int8_experts=0 if cold is None else len(cold),
            int8_logit_difference=0.0 if loss is None else loss.logit_difference,
            int8_perplexity_ratio=1.0 if loss is None else loss.perplexity_ratio,
        )

    def close(self) -> None:
        """End the cache's threads, free its memory and close the files."""
        self.cache.close()
        self.stored.store.close()


def cache_bytes(asked: float, shape: MixtureShape) -> int:
    """Bytes of a cache, asked for as a share of all experts in full precision (up to 1) or in bytes."""
    return round(asked * shape.count * shape.expert_bytes) if asked <= 1 else int(asked)
