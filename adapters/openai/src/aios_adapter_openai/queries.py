"""What the kernel serves of OpenAI's API, by method and path."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

from aios_kernel.openai_wire import (
    EMBEDDINGS_PATH,
    EXCHANGES,
    MODELS_PATH,
    EmbeddingsExchange,
    Exchange,
    model_list,
    model_named,
)
from aios_kernel.syscalls import Embeddings, KernelInfo, KernelStatus, LlmEmbed


@dataclass(frozen=True, slots=True)
class Query:
    """A request that one syscall other than `llm.chat` answers; `reply` makes the body of its result."""

    call: LlmEmbed | KernelInfo
    answer: type[Embeddings] | type[KernelStatus]
    reply: Callable[[Any], dict[str, Any]]


Reader: TypeAlias = Callable[[Mapping[str, Any]], Exchange | Query]
"""Reads a request's body. Raises InvalidRequest."""


def reader_of(method: str, path: str) -> Reader | None:
    """What reads a request to `path` (below the base URL); None when the kernel does not serve it."""
    if method.upper() == "POST":
        return _embeddings if path == EMBEDDINGS_PATH else EXCHANGES.get(path)
    if method.upper() == "GET" and (path == MODELS_PATH or path.startswith(f"{MODELS_PATH}/")):
        name = unquote(path.removeprefix(MODELS_PATH).removeprefix("/"))
        return lambda body: _models(name or None)
    return None


def _embeddings(body: Mapping[str, Any]) -> Query:
    exchange = EmbeddingsExchange(body)
    return Query(exchange.call, Embeddings, exchange.reply)


def _models(name: str | None) -> Query:
    """The list of models, or the one that is named."""

    def reply(status: KernelStatus) -> dict[str, Any]:
        since_s = time.time() - status.uptime_s
        return model_list([status.model], since_s) if name is None else model_named(name, [status.model], since_s)

    return Query(KernelInfo(), KernelStatus, reply)
