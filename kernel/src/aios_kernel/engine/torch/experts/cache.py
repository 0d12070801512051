"""Which experts are in memory: a cache of a stated size in bytes, filled by threads of its own.

The cache knows numbers, sizes and slots; what an expert is, whence it comes and how soon it will be used it is told.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from aios_kernel.engine.torch.experts.contracts import CacheCounts, Ranking, Slots
from aios_kernel.errors import ConfigError, EngineError

S = TypeVar("S")


class ExpertCache(Generic[S]):
    """Experts in slots, at most `budget` bytes of them, free slots included.

    `each` is called by one thread, the engine's. An expert that is in use, or is being read, is never evicted.

    Args:
        count: how many experts there are.
        budget: bytes of all slots together.
        slots: to read into.
        ranking: whose experts are evicted first; asked under the cache's lock.
        readers: threads that read; one of them is kept for what is needed now.

    Raises:
        ConfigError: not even the largest expert fits into the budget.
    """

    def __init__(self, count: int, budget: int, slots: Slots[S], ranking: Ranking, readers: int = 2) -> None:
        largest = max(map(slots.size, range(count)))
        if budget < largest:
            raise ConfigError(
                f"an expert cache of {budget:,} bytes holds no expert: one takes {largest:,}",
                fix=f"set expert_cache to at least {largest} (bytes), or to a share such as 0.5",
            )
        self.budget, self.counts = budget, CacheCounts()
        self._memory, self._ranking = slots, ranking
        self._slots: dict[int, S] = {}
        self._resident = np.zeros(count, dtype=bool)
        self._in_use = np.zeros(count, dtype=bool)
        """Wanted by the layer that runs: not evicted even before it is its turn."""
        self._loading: dict[int, bool] = {}
        """Being read; whether it was foreseen."""
        self._wanted: set[int] = set()
        self._inherited: set[int] = set()
        """Wanted now, while a read that an earlier call began is on its way: if that one fails, it is tried again."""
        self._demanded: deque[int] = deque()
        self._wishes: deque[int] = deque()
        self._errors: dict[int, Exception] = {}
        self._spare: dict[int, list[S]] = {}
        self._taken = 0
        self._lock = threading.Condition()
        self._closed = False
        self._readers = readers
        self._threads: list[threading.Thread] = []

    @property
    def taken_bytes(self) -> int:
        """Bytes of all slots that exist."""
        return self._taken

    @property
    def resident(self) -> NDArray[np.bool_]:
        """Which experts are in memory now, by number."""
        return self._resident.copy()

    def each(self, numbers: Sequence[int], ahead: Sequence[int] = ()) -> Generator[tuple[int, S]]:
        """Give the slots of these experts, whatever is there first; each may be used until the next is asked for.

        More of them than fit are read one after the other, as the use of the earlier ones ends.

        Args:
            numbers: of the experts that a layer needs now.
            ahead: of those to read when nothing else is to be read, the most urgent first, in place of what earlier
                calls named; for them nothing is evicted that is needed sooner.

        Raises:
            EngineError: an expert could not be read by this call; the cache is whole, and the next call tries again.
        """
        ready, left = self._want(numbers, ahead)
        try:
            while ready or left:
                number, slot = ready.pop() if ready else self._next(left)
                left.discard(number)
                try:
                    yield number, slot
                finally:
                    self._memory.release(slot)
                if left:
                    self._done(number)
        finally:
            self._forget()

    def close(self) -> None:
        """End the threads and free the slots. A caller inside `each` gets an EngineError."""
        with self._lock:
            self._closed = True
            self._demanded.clear()
            self._wishes.clear()
            self._lock.notify_all()
        for thread in self._threads:
            thread.join()
        for slot in [*self._slots.values(), *itertools.chain.from_iterable(self._spare.values())]:
            self._memory.drop(slot)
        self._slots.clear()
        self._spare.clear()
        self._resident[:] = False
        self._taken = 0

    # --- the engine's thread ----------------------------------------------------------------------------------------

    def _want(self, numbers: Sequence[int], ahead: Sequence[int]) -> tuple[list[tuple[int, S]], set[int]]:
        """Take what is there and ask for the rest; both are given."""
        with self._lock:
            if self._closed:
                raise EngineError("the engine was closed")
            wanted = list(dict.fromkeys(numbers))
            absent = [number for number in wanted if number not in self._slots]
            ready = [(number, self._slots[number]) for number in wanted if number in self._slots]
            late = sum(self._loading.get(number, False) for number in absent)
            self.counts.hits += len(ready)
            self.counts.late += late
            self.counts.misses += len(absent) - late
            self._in_use[[number for number, _ in ready]] = True
            self._wanted = set(wanted)
            self._inherited = set(absent) & self._loading.keys()
            self._demanded = deque(number for number in absent if number not in self._inherited)
            self._wishes = deque(ahead)
            if self._demanded or self._wishes:
                self._start()
                self._lock.notify_all()
            return ready, set(absent)

    def _next(self, left: set[int]) -> tuple[int, S]:
        with self._lock:
            while True:
                if self._closed:
                    raise EngineError("the engine was closed")
                ready = next((number for number in left if number in self._slots), None)
                if ready is not None:
                    return ready, self._slots[ready]
                for number in left & self._errors.keys():
                    raise _unreadable(number, self._errors[number]) from self._errors[number]
                began = time.perf_counter()
                self._lock.wait()
                self.counts.waited_s += time.perf_counter() - began

    def _done(self, number: int) -> None:
        with self._lock:
            self._wanted.discard(number)
            self._in_use[number] = False
            self._lock.notify_all()

    def _forget(self) -> None:
        """The layer is through, or failed: what it still wanted is wanted no more."""
        with self._lock:
            self._demanded.clear()
            self._errors.clear()
            self._wanted.clear()
            self._inherited.clear()
            self._in_use[:] = False
            if self._wishes:
                self._lock.notify_all()

    # --- the readers ------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self._threads and not self._closed:
            self._threads = [
                threading.Thread(target=self._serve, name=f"aios-experts-{n}", daemon=True)
                for n in range(self._readers)
            ]
            for thread in self._threads:
                thread.start()

    def _serve(self) -> None:
        while (job := self._job()) is not None:
            number, slot = job
            error: Exception | None = None
            try:
                self._memory.load(number, slot)
            except Exception as caught:  # noqa: BLE001 - whoever waits for the expert is told, nobody hangs
                error = caught
            self._arrived(number, slot, error)

    def _job(self) -> tuple[int, S] | None:
        """What to read next and where to; waits until there is something. None: the cache was closed."""
        with self._lock:
            while not self._closed:
                found = self._demand() or self._ahead()
                if found is not None:
                    return found
                self._lock.wait()
        return None

    def _demand(self) -> tuple[int, S] | None:
        if not self._demanded:
            return None
        number = self._demanded[0]
        try:
            slot = self._room(number, None)
        except Exception as error:  # noqa: BLE001 - no memory: as if it could not be read
            self._errors[self._demanded.popleft()] = error
            self._lock.notify_all()
            return None
        if slot is None:
            return None  # until the layer is done with one of its experts
        self._demanded.popleft()
        self._loading[number] = False
        return number, slot

    def _ahead(self) -> tuple[int, S] | None:
        foreseen = sum(self._loading.values())
        while self._wishes and foreseen < max(1, self._readers - 1):
            number = self._wishes.popleft()
            if self._resident[number] or number in self._loading or number in self._wanted:
                continue
            try:
                slot = self._room(number, float(self._ranking.distances()[number]))
            except Exception:  # noqa: BLE001 - no memory: it was not asked for yet
                slot = None
            if slot is not None:
                self._loading[number] = True
                self.counts.prefetched += 1
                return number, slot
        return None

    def _arrived(self, number: int, slot: S, error: Exception | None) -> None:
        with self._lock:
            del self._loading[number]
            inherited = number in self._inherited
            self._inherited.discard(number)
            if self._closed:
                self._memory.drop(slot)
                return
            if error is None:
                self._slots[number] = slot
                self._resident[number] = True
                self._in_use[number] = number in self._wanted
                self.counts.bytes_read += self._memory.size(number)
            else:
                self._spare.setdefault(self._memory.size(number), []).append(slot)
                self.counts.failed += 1
                if inherited:  # the call that waits now has not had a try of its own
                    self._demanded.append(number)
                elif number in self._wanted:
                    self._errors[number] = error
            self._lock.notify_all()

    # --- room -------------------------------------------------------------------------------------------------------

    def _room(self, number: int, distance: float | None) -> S | None:
        """A slot for an expert; None if there is none without evicting what is used sooner than in `distance`."""
        size = self._memory.size(number)
        while True:
            if spare := self._spare.get(size):
                return spare.pop()
            if self._taken + size <= self.budget:
                slot = self._memory.make(number)
                self._taken += size
                return slot
            if not self._drop_spare():
                victim = self._victim(distance)
                if victim is None:
                    return None
                self._evict(victim)

    def _drop_spare(self) -> bool:
        """Free a slot of another size than is wanted, if one is spare."""
        for size, slots in self._spare.items():
            if slots:
                self._memory.drop(slots.pop())
                self._taken -= size
                return True
        return False

    def _victim(self, distance: float | None) -> int | None:
        open_to = self._resident & ~self._in_use
        if not open_to.any():
            return None
        distances = np.where(open_to, self._ranking.distances(), -np.inf)
        farthest = int(distances.argmax())
        return farthest if distance is None or distances[farthest] > distance else None

    def _evict(self, number: int) -> None:
        self._resident[number] = False
        self._spare.setdefault(self._memory.size(number), []).append(self._slots.pop(number))


def _unreadable(number: int, error: Exception) -> EngineError:
    return EngineError(
        f"expert {number} could not be read: {type(error).__name__}: {error}",
        fix="check the disk and the model's folder, then call again",
    )
