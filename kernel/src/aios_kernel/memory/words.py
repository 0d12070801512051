"""Texts to stemmed words, by SQLite's own tokenizers: Unicode words without accents, Porter's stems."""

from __future__ import annotations

from typing import Final, final

import apsw

_STOP_WORDS: Final = """
a about an and any are as at be been but by can could d did do does during for from had has have he her hers him his how
i if in into is it its just ll m me my of on or our re s she should so some t than that the their them then there these
they this to us ve was we were what when where which who whom why will with would you your
"""
_STOP: Final = frozenset(_STOP_WORDS.split())
"""English words that say nothing about what a text is about; a text of these alone keeps them."""


@final
class Stemmer:
    """Splits texts into terms; for one thread."""

    def __init__(self) -> None:
        self._db = apsw.Connection(":memory:")  # tokenizers belong to a connection
        self._words = self._db.fts5_tokenizer("unicode61", [])
        self._stems = self._db.fts5_tokenizer("porter", ["unicode61"])

    def terms(self, text: str) -> list[str]:
        """The stems of a text in order, without stop words unless there is nothing else."""
        utf8 = text.encode(errors="replace")
        words = self._tokens(self._words, utf8)
        stems = self._tokens(self._stems, utf8)
        said = [stem for word, stem in zip(words, stems, strict=True) if word not in _STOP]
        return said or stems

    def _tokens(self, tokenizer: apsw.FTS5Tokenizer, utf8: bytes) -> list[str]:
        return tokenizer(utf8, apsw.FTS5_TOKENIZE_DOCUMENT, None, include_offsets=False, include_colocated=False)  # pyright: ignore[reportReturnType] - a list of str with these two flags
