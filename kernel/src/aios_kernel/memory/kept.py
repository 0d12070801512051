"""The vectors made last, by their texts' hashes; for several threads."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, final

import numpy as np

from aios_kernel.memory.index import Vector, Vectors

_MOST: Final = 8192
_SHORT: Final = 8192


@final
class KeptVectors:
    """An LRU of vectors.

    Args:
        make: embeds texts that are not kept; shape [n, dimensions].
    """

    def __init__(self, make: Callable[[list[str]], Vectors]) -> None:
        self._make = make
        self._kept: OrderedDict[bytes, Vector] = OrderedDict()
        self._lock = threading.Lock()

    def at_hand(self, texts: Sequence[str]) -> Vectors | None:
        """The vectors of a few short texts, if all are kept: cheap enough for an event loop."""
        if not texts or sum(map(len, texts)) > _SHORT:
            return None
        hashes = list(map(_hash, texts))
        with self._lock:
            found = [self._kept[digest] for digest in hashes if digest in self._kept]
            if len(found) < len(texts):
                return None
            for digest in hashes:
                self._kept.move_to_end(digest)
        return np.stack(found)

    def of(self, texts: Sequence[str]) -> Vectors:
        """The vectors of texts; those that are not kept are made."""
        hashes = list(map(_hash, texts))
        with self._lock:
            known = {digest: self._kept[digest] for digest in hashes if digest in self._kept}
        new = {digest: text for digest, text in zip(hashes, texts, strict=True) if digest not in known}
        if new:
            known.update(zip(new, self._make(list(new.values())), strict=True))
        with self._lock:
            for digest in hashes:
                self._kept[digest] = known[digest]
                self._kept.move_to_end(digest)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        return np.stack([known[digest] for digest in hashes])


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
