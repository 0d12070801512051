"""The way of an expert from where it is stored into a slot on the model's device."""

from __future__ import annotations

import threading
from typing import Any, Protocol

import torch
from torch import Tensor

from aios_kernel.engine.torch.experts.forms import Slot


class Store(Protocol):
    """Where experts are kept that are not in the cache: files, or host memory."""

    def read(self, number: int, into: memoryview) -> None:
        """Copy an expert, as it is stored, into memory of its size. From any thread. Raises OSError."""
        ...

    def stored_bytes(self, number: int) -> int:
        """Its size."""
        ...

    def close(self) -> None:
        """Give up what it holds; nothing is read any more."""
        ...


class HostStore:
    """All experts of another store in host memory; for devices that fetch from there."""

    def __init__(self, store: Store, count: int, *, pinned: bool) -> None:
        self._experts = [
            torch.empty(store.stored_bytes(number), dtype=torch.uint8, pin_memory=pinned) for number in range(count)
        ]
        for number, expert in enumerate(self._experts):
            store.read(number, memory_of(expert))
        self._store = store

    def read(self, number: int, into: memoryview) -> None:
        """See `Store`."""
        into[:] = memory_of(self._experts[number])

    def stored_bytes(self, number: int) -> int:
        """See `Store`."""
        return self._experts[number].nbytes

    def close(self) -> None:
        """See `Store`."""
        self._experts.clear()
        self._store.close()

    def tensor(self, number: int) -> Tensor:
        """An expert where it lies, to be copied to a device without a step between."""
        return self._experts[number]


class Transfer:
    """Fills slots, from several threads at once.

    On the CPU an expert that is stored as it is computed with is read straight into its slot. Everything else goes
    through one piece of host memory a thread: numbers that have to be converted, and what a CUDA device copies (from
    pinned memory, on a stream of its own beside the computation).

    Args:
        store: where experts come from.
        device: of the slots.
    """

    def __init__(self, store: Store, device: torch.device) -> None:
        self._store = store
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._local = threading.local()

    def load(self, number: int, slot: Slot) -> None:
        """Fill a slot; the expert is there when this returns. Raises OSError."""
        if self._stream is None:
            self._load_on_host(number, slot)
            return
        with torch.cuda.stream(self._stream):
            if slot.released is not None:
                self._stream.wait_event(slot.released)
            slot.fill(self._host_copy(number))
            done = self._stream.record_event()
        done.synchronize()

    def release(self, slot: Slot) -> None:
        """Say that what computes with a slot was launched: it may be filled anew behind that."""
        if self._stream is not None:
            slot.released = torch.cuda.current_stream(self._stream.device).record_event()

    def _load_on_host(self, number: int, slot: Slot) -> None:
        if slot.direct:
            self._store.read(number, memory_of(slot.memory))
        else:
            slot.fill(self._host_copy(number))

    def _host_copy(self, number: int) -> Tensor:
        if isinstance(self._store, HostStore):
            return self._store.tensor(number)
        size = self._store.stored_bytes(number)
        piece: Tensor | None = getattr(self._local, "piece", None)
        if piece is None or piece.nbytes < size:
            piece = torch.empty(size, dtype=torch.uint8, pin_memory=self._stream is not None)
            self._local.piece = piece
        self._store.read(number, memory_of(piece[:size]))
        return piece[:size]


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the host."""
    array: Any = tensor.numpy()
    return memoryview(array)
