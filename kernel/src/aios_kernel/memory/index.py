"""The vector index contract. An index is a cache: it can be dropped and rebuilt from the rows at any time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float32]
"""Unit length, shape [dimensions]."""
Vectors: TypeAlias = npt.NDArray[np.float32]
"""Unit length each, shape [n, dimensions]."""


class Space(NamedTuple):
    """The notes that are searched together: a namespace of a principal."""

    principal: str
    namespace: str


class Hit(NamedTuple):
    """A note's id and its cosine similarity, -1 to 1."""

    id: str
    score: float


def similarities(vectors: Vectors, vector: Vector) -> Vector:
    """Cosines of unit vectors with another, shape [n].

    Not by BLAS, whose threads would compete with the engine's: on a busy machine that made 0.5 ms of work take 30 ms.
    """
    return np.einsum("nd,d->n", vectors, vector)


class VectorIndex(Protocol):
    """Nearest neighbours by cosine, space by space. `search` may run on one thread while another changes the index."""

    def add(self, space: Space, ids: Sequence[str], vectors: Vectors) -> None:
        """Insert vectors, or replace those of known ids; ids do not repeat."""
        ...

    def search(self, space: Space, vector: Vector, k: int, allowed: Collection[str] | None = None) -> list[Hit]:
        """The `k` nearest, best first, among the `allowed` ids if given; unknown ids and spaces are no error."""
        ...

    def delete(self, space: Space, ids: Sequence[str]) -> None:
        """Remove vectors; unknown ids are no error."""
        ...

    def drop(self, space: Space) -> None:
        """Remove all vectors of a space."""
        ...

    def count(self, space: Space) -> int:
        """How many vectors a space has."""
        ...

    def close(self) -> None:
        """Make everything durable and let go of the files."""
        ...
