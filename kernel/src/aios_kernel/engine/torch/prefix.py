"""Content keys of KV blocks: a chain of hashes, so that equal keys mean equal tokens from the first one on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

BLOCK = 16
"""Tokens in a KV block."""


def root_key(salt: bytes, lora: bytes | None = None) -> bytes:
    """The key before the first block: contexts of different salts (trust domains) or adapters never share a block.

    `lora` is the digest of the adapter; the KV of equal tokens is another under another one.
    """
    root = hashlib.sha256(b"aios-kv\0" + salt).digest()
    return root if lora is None else hashlib.sha256(b"aios-kv-lora\0" + lora + root).digest()


def extend_keys(keys: list[bytes], root: bytes, tokens: Sequence[int]) -> None:
    """Append the keys of all full blocks of `tokens` that `keys` does not hold yet."""
    done, full = len(keys), len(tokens) // BLOCK
    if done >= full:
        return
    data = np.asarray(tokens[done * BLOCK : full * BLOCK], dtype=np.int32).tobytes()
    parent, width = (keys[-1] if keys else root), BLOCK * 4
    for at in range(0, len(data), width):
        parent = hashlib.sha256(parent + data[at : at + width]).digest()
        keys.append(parent)


def tail_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a block that is filled in part, behind `parent`; longer than any full block's."""
    return parent + np.asarray(tokens, dtype=np.int32).tobytes()
