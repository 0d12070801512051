"""The words of a text as numbers: digests of stems and how often each occurs, packed for a row of the notes table."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt

from aios_kernel.memory.words import Stemmer

Keys: TypeAlias = npt.NDArray[np.uint64]
"""Digests of stems, ascending, each once."""
Counts: TypeAlias = npt.NDArray[np.float32]

_CACHED: Final = 200_000
_MOST: Final = 65_535
_SPEAKER: Final = re.compile(r"\s*([^\W\d_][\w.'-]*(?: [^\W\d_][\w.'-]*){0,2}):\s")


class Terms(NamedTuple):
    """The distinct stems of a text and how often each occurs; two arrays of one length."""

    keys: Keys
    counts: Counts


@final
class TermReader:
    """Texts to terms; for one thread.

    A stem is known by 64 bits of its BLAKE2: no table of words has to be kept in step with the notes, and among ten
    million stems two share a number with a chance of 1 in 370,000.
    """

    def __init__(self) -> None:
        self._stemmer = Stemmer()
        self._digests: dict[str, int] = {}

    def of(self, text: str, speaker: str | None = None) -> Terms:
        """The terms of a text; `speaker` is who says it, if another than its first words tell.

        A speaker's names are keys of their own kind with a count of 0: they are found, and weigh nothing as words.
        """
        counted = Counter(map(self._digest, self._stemmer.terms(text)))
        named = speaker or speaker_of(text)
        counted.update(dict.fromkeys(self._said_by(self._stemmer.terms(named) if named else []), 0))
        keys = np.array(sorted(counted), np.uint64)
        return Terms(keys, np.array([min(counted[key], _MOST) for key in keys.tolist()], np.float32))

    def asked(self, query: str) -> tuple[Keys, Keys]:
        """The terms of a query, and the keys that notes have whose speaker it names."""
        stems = dict.fromkeys(self._stemmer.terms(query))
        return (
            np.array(sorted(map(self._digest, stems)), np.uint64),
            np.array(sorted(self._said_by(stems)), np.uint64),
        )

    def _said_by(self, stems: Iterable[str]) -> list[int]:
        return [self._digest(f"\0{stem}") for stem in stems]

    def _digest(self, stem: str) -> int:
        known = self._digests.get(stem)
        if known is None:
            if len(self._digests) >= _CACHED:
                self._digests.clear()
            digest = hashlib.blake2b(stem.encode(errors="replace"), digest_size=8).digest()
            known = self._digests[stem] = int.from_bytes(digest, "little")
        return known


def speaker_of(text: str) -> str | None:
    """Who speaks in a text that begins as a transcript's line does, `Ann Lee: I am ...`."""
    found = _SPEAKER.match(text)
    return found[1] if found else None


def pack(terms: Terms) -> bytes:
    """Eight bytes a key, then two bytes a count, little-endian."""
    return terms.keys.astype("<u8").tobytes() + terms.counts.astype("<u2").tobytes()


def unpack_all(blobs: Sequence[bytes]) -> tuple[Terms, npt.NDArray[np.int64]]:
    """The terms of many texts behind one another, and how many each has."""
    sizes = [len(blob) // 10 for blob in blobs]
    keys = b"".join(blob[: 8 * size] for blob, size in zip(blobs, sizes, strict=True))
    counts = b"".join(blob[8 * size :] for blob, size in zip(blobs, sizes, strict=True))
    terms = Terms(np.frombuffer(keys, "<u8").astype(np.uint64), np.frombuffer(counts, "<u2").astype(np.float32))
    return terms, np.array(sizes, np.int64)


def unpack(blob: bytes) -> Terms:
    """The inverse of `pack`."""
    size = len(blob) // 10
    keys = np.frombuffer(blob, "<u8", size).astype(np.uint64)
    return Terms(keys, np.frombuffer(blob, "<u2", size, 8 * size).astype(np.float32))
