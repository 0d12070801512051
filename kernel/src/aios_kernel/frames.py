"""Length-prefixed msgpack frames: a big-endian u32 and that many bytes. Used by both sides of the socket."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from aios_kernel.errors import ProtocolError
from aios_kernel.syscalls import MAX_FRAME_BYTES, ClientFrame, KernelFrame

_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()

Frame = TypeVar("Frame")


def encode(frame: ClientFrame | KernelFrame) -> bytes:
    """One frame as bytes; raises ProtocolError when it is larger than MAX_FRAME_BYTES."""
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(
            f"a frame of {len(body):,} bytes exceeds the limit of {MAX_FRAME_BYTES:,}",
            fix="send less at once: split the data over several calls",
        )
    return _LENGTH.pack(len(body)) + body


class FrameReader(Generic[Frame]):
    """Cuts a byte stream into decoded frames; feed it what arrives."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Frame]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield every frame completed by `data`; raises ProtocolError on one that cannot be read."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= 4:
                (size,) = _LENGTH.unpack_from(buffer, start)
                if size > MAX_FRAME_BYTES:
                    raise ProtocolError(f"a frame announces {size:,} bytes; the limit is {MAX_FRAME_BYTES:,}")
                if len(buffer) - start - 4 < size:
                    return
                body = bytes(memoryview(buffer)[start + 4 : start + 4 + size])
                start += 4 + size
                yield self._decode(body)
        finally:
            del buffer[:start]

    def _decode(self, body: bytes) -> Frame:
        try:
            return self._decoder.decode(body)
        # Nesting beyond Python's recursion limit is a client's fault like any other malformed frame.
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise ProtocolError(f"a frame cannot be read: {error}") from error


def client_frames() -> FrameReader[ClientFrame]:
    """A reader for the kernel's side."""
    return FrameReader(msgspec.msgpack.Decoder(ClientFrame))


def kernel_frames() -> FrameReader[KernelFrame]:
    """A reader for the client's side."""
    return FrameReader(msgspec.msgpack.Decoder(KernelFrame))
