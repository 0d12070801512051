"""Which path is answered by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aios_kernel.openai_wire.chat_reply import ChatExchange
from aios_kernel.openai_wire.exchange import Exchange
from aios_kernel.openai_wire.responses_reply import ResponsesExchange

EXCHANGES: Mapping[str, Callable[[Mapping[str, Any]], Exchange]] = {
    "/chat/completions": ChatExchange,
    "/responses": ResponsesExchange,
}
"""The endpoints that ask the model, by their path below `/v1`."""

EMBEDDINGS_PATH = "/embeddings"
MODELS_PATH = "/models"
