"""A slower device than this machine has, in front of experts that lie in memory."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aios_kernel.engine.torch.experts.transfer import Store


class SlowStore:
    """Gives experts no faster than a device of this bandwidth would: one read after the other, in the order of asking.

    Args:
        store: of the experts.
        bytes_per_s: of the simulated device.
    """

    def __init__(self, store: Store, bytes_per_s: float) -> None:
        self._store, self._bytes_per_s = store, bytes_per_s
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def read(self, number: int, into: memoryview) -> None:
        """See `Store`; returns when the device would be done."""
        with self._lock:
            began_s = max(time.perf_counter(), self._free_at_s)
            self._free_at_s = done_s = began_s + self.stored_bytes(number) / self._bytes_per_s
        self._store.read(number, into)
        while (left_s := done_s - time.perf_counter()) > 0:
            time.sleep(left_s)

    def stored_bytes(self, number: int) -> int:
        """See `Store`."""
        return self._store.stored_bytes(number)

    def close(self) -> None:
        """See `Store`."""
        self._store.close()
