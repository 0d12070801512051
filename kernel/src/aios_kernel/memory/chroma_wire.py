"""What the kernel and its chroma worker say to each other: length-prefixed msgpack over pipes, one answer a request."""

from __future__ import annotations

import struct
from typing import IO, Final, TypeAlias, TypeVar, Union

import msgspec
import numpy as np

from aios_kernel.memory.index import Space, Vectors

T = TypeVar("T")

_LENGTH: Final = struct.Struct(">I")


class _Frame(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the requests."""

    space: Space


class Add(_Frame, frozen=True, tag="add"):
    """Insert or replace; `vectors` as `to_bytes` makes them."""

    ids: list[str]
    vectors: bytes


class Search(_Frame, frozen=True, tag="search"):
    """Answered by ids and scores."""

    vector: bytes
    k: int
    allowed: list[str] | None


class Delete(_Frame, frozen=True, tag="delete"):
    """Remove some ids."""

    ids: list[str]


class Drop(_Frame, frozen=True, tag="drop"):
    """Remove the space."""


class Count(_Frame, frozen=True, tag="count"):
    """Answered by the count."""


Request: TypeAlias = Union[Add, Search, Delete, Drop, Count]


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer; `code`, `message` and `fix` if it is an error of `aios_kernel.errors`. The first one says "open"."""

    ids: list[str] = []
    numbers: bytes = b""
    count: int = 0
    code: str | None = None
    message: str = ""
    fix: str | None = None


def to_bytes(numbers: Vectors) -> bytes:
    """Float32, little-endian, row after row."""
    return np.ascontiguousarray(numbers, "<f4").tobytes()


def from_bytes(data: bytes, rows: int) -> Vectors:
    """The inverse of `to_bytes`; shape [rows, dimensions]."""
    return np.frombuffer(data, "<f4").reshape(rows, -1) if rows else np.zeros((0, 0), np.float32)


def write_frame(stream: IO[bytes], message: Request | Reply) -> None:
    """Send one message."""
    data = msgspec.msgpack.encode(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def read_frame(stream: IO[bytes], decoder: msgspec.msgpack.Decoder[T]) -> T | None:
    """Receive one message; None when the other side has gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    return decoder.decode(data) if len(data) == length else None
