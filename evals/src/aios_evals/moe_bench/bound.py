"""What no cache could do better: Bélády's rule on the experts that were used."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence


def fewest_reads(asked: Sequence[Sequence[int]], capacity: int, resident: Iterable[int] = ()) -> int:
    """Reads that a cache needs which knows the future: what is used again last is evicted (Bélády 1966).

    Args:
        asked: experts that each layer needed, in the order of the layers and passes.
        capacity: experts that fit.
        resident: those that are in the cache at the beginning.
    """
    flat = [number for numbers in asked for number in numbers]
    never = len(flat)
    following, next_at = [never] * len(flat), dict[int, int]()
    for place in range(len(flat) - 1, -1, -1):
        following[place] = next_at.get(flat[place], never)
        next_at[flat[place]] = place
    held = {number: next_at.get(number, never) for number in resident}
    heap = [(-place, number) for number, place in held.items()]
    heapq.heapify(heap)
    reads = 0
    for place, number in enumerate(flat):
        if number not in held:
            reads += 1
            while len(held) >= capacity:
                until, victim = heapq.heappop(heap)
                if held.get(victim) == -until:  # else the entry is older than its last use
                    del held[victim]
        held[number] = following[place]
        heapq.heappush(heap, (-following[place], number))
    return reads
