"""Naming conversations by their messages, so that a call can be known as the next turn of an earlier one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from aios_kernel.syscalls import Message


def history_keys(messages: Sequence[Message]) -> tuple[bytes, ...]:
    """A key for every beginning of a conversation: equal keys mean equal messages so far."""
    keys: list[bytes] = []
    parent = b""
    for message in messages:
        parent = hashlib.blake2b(parent + msgspec.msgpack.encode(message), digest_size=16).digest()
        keys.append(parent)
    return tuple(keys)
