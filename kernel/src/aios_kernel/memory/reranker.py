"""A second look at the best notes, together with the query: the contract, and sentence-transformers' cross-encoders."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, final

import msgspec

from aios_kernel.errors import ConfigError, InternalError
from aios_kernel.syscalls import Note

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


class Reranker(Protocol):
    """Tells how well texts answer a query. May be called from several threads."""

    candidates: int
    """How many of the best notes it looks at."""

    def scores(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """One number a text, higher is better, 0 to 1.

        Raises:
            ConfigError: the model cannot be loaded.
        """
        ...


@final
class CrossEncoderReranker:
    """A cross-encoder in a local folder, loaded at the first use; nothing is downloaded.

    Args:
        path: the model's folder.
        device: torch's name of the device.
        candidates: how many notes it looks at.
    """

    def __init__(self, path: Path, *, device: str = "cpu", candidates: int = 50) -> None:
        self.candidates = candidates
        self._path = path
        self._device = device
        self._model: CrossEncoder | None = None
        self._lock = threading.Lock()

    def scores(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """See `Reranker.scores`; texts beyond the model's window are cut by the model."""
        from torch.nn import Sigmoid

        with self._lock:
            self._model = self._model or self._load()
            pairs = [(query, text) for text in texts]
            found = self._model.predict(pairs, activation_fn=Sigmoid(), show_progress_bar=False)
        return [float(score) for score in found]

    def _load(self) -> CrossEncoder:
        fix = "set [memory] reranker to the folder of a cross-encoder, or leave it empty"
        if not self._path.is_dir():
            raise ConfigError(f"there is no reranker in {self._path}", fix=fix)
        try:
            from sentence_transformers import CrossEncoder

            return CrossEncoder(str(self._path), device=self._device, num_labels=1, local_files_only=True)
        except Exception as error:
            raise ConfigError(f"the reranker {self._path} cannot be loaded: {error}", fix=fix) from error


def reordered(reranker: Reranker, query: str, notes: list[Note]) -> list[Note]:
    """The notes by the reranker's scores; those beyond its candidates follow as they were."""
    looked = notes[: reranker.candidates]
    if not looked:
        return notes
    scores = list(reranker.scores(query, [note.text for note in looked]))
    if len(scores) != len(looked):
        raise InternalError(f"the reranker gave {len(scores)} scores for {len(looked)} notes")
    order = sorted(range(len(looked)), key=lambda at: -scores[at])
    return [msgspec.structs.replace(looked[at], score=scores[at]) for at in order] + notes[len(looked) :]
