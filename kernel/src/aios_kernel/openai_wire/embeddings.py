"""Embeddings: reading a request and writing the answer."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Mapping
from typing import Any

from aios_kernel.errors import InvalidRequest
from aios_kernel.openai_wire._reader import Reader, refused
from aios_kernel.syscalls import Embeddings, LlmEmbed

EMBEDDING_FORMATS = frozenset({"float", "base64"})


class EmbeddingsExchange:
    """An embeddings request and its answer."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        """Read the request. Raises InvalidRequest, or Unsupported for token arrays and `dimensions`."""
        fields = Reader(body)
        self.call = LlmEmbed(texts=_texts(fields.value("input")), model=fields.text("model"))
        self._format = fields.text("encoding_format")
        if self._format not in (None, *EMBEDDING_FORMATS):
            raise InvalidRequest(f'encoding_format must be float or base64, not "{self._format}"')
        fields.end({"user"})

    def reply(self, result: Embeddings) -> dict[str, Any]:
        """The list of vectors, in the order of the texts."""
        spell = _base64 if self._format == "base64" else list[float]
        return {
            "object": "list",
            "model": result.model,
            "data": [
                {"object": "embedding", "index": index, "embedding": spell(vector)}
                for index, vector in enumerate(result.vectors)
            ],
            "usage": {"prompt_tokens": result.usage.prompt_tokens, "total_tokens": result.usage.prompt_tokens},
        }


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise InvalidRequest('the field "input" must be a text or a list of texts, and not empty')
    if not all(isinstance(text, str) for text in texts):
        raise refused("input as token numbers", fix="send texts (LangChain: check_embedding_ctx_length=False)")
    return texts


def _base64(vector: list[float]) -> str:
    """32-bit floats, little-endian, as OpenAI's SDK decodes them."""
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")
