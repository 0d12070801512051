"""LangChain and LangGraph on the kernel. See `plugin` for what is hooked.

Ready-made classes, for those who choose the kernel openly: `kernel_chat_model.KernelChatModel`,
`kernel_embeddings.KernelEmbeddings`, `kernel_vector_store.KernelVectorStore`, `kernel_byte_store.KernelByteStore`,
`kernel_store.KernelStore` and `kernel_saver.KernelCheckpointSaver`. The package itself imports nothing of LangChain.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "KernelByteStore": "kernel_byte_store",
    "KernelChatModel": "kernel_chat_model",
    "KernelCheckpointSaver": "kernel_saver",
    "KernelEmbeddings": "kernel_embeddings",
    "KernelStore": "kernel_store",
    "KernelVectorStore": "kernel_vector_store",
}

__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
