"""Texts to vectors: the contract, and a deterministic embedder that needs no model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol, final

import numpy as np

from aios_kernel.memory.index import Vectors

_WORD = re.compile(r"\w+")


class Embedder(Protocol):
    """Turns texts into vectors of one length. Called by one thread."""

    name: str
    """Names the vector space: vectors of different names are never compared."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Embed texts; float32, shape [len(texts), dimensions].

        Raises:
            ConfigError: the model cannot be loaded; the fix says what to install.
        """
        ...

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens the texts have together."""
        ...


@final
class HashEmbedder:
    """Bag of hashed words and, weaker, of their letter trigrams: texts that share words are near.

    For tests and for `AIOS_EMBEDDER=hash`, where a recall by shared words is enough.
    """

    name = "hash-256"
    _DIMENSIONS = 256

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.embed`; the vectors have unit length."""
        vectors = np.zeros((len(texts), self._DIMENSIONS), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in _WORD.findall(text.lower()):
                self._count(row, word, 1.0)
                for at in range(len(word) - 2):
                    self._count(row, f"#{word[at : at + 3]}", 0.25)
            if not row.any():
                row[0] = 1.0  # no words at all: a vector nevertheless, so that a cosine exists
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """See `Embedder.count_tokens`; a token is a word."""
        return sum(len(_WORD.findall(text)) for text in texts)

    def _count(self, row: Vectors, feature: str, weight: float) -> None:
        digest = int.from_bytes(hashlib.blake2b(feature.encode(errors="replace"), digest_size=8).digest(), "big")
        row[digest % self._DIMENSIONS] += weight if digest >> 63 else -weight
