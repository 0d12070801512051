"""Length-prefixed msgpack frames: a big-endian u32 and that many bytes. Used by both sides of the socket."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from aios_kernel.errors import AiosError, InvalidRequest, ProtocolError
from aios_kernel.syscalls import MAX_FRAME_BYTES, ClientFrame, KernelFrame

_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()

Frame = TypeVar("Frame")


def encode(frame: ClientFrame | KernelFrame) -> bytes:
    """One frame as bytes; raises ProtocolError when it cannot be written or is larger than MAX_FRAME_BYTES."""
    try:
        body = _encoder.encode(frame)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:  # such as half a surrogate pair in a text
        raise ProtocolError(
            f"a frame cannot be written: {error}", fix="text.encode('utf-8', 'replace').decode() mends broken text"
        ) from error
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


class _Call(msgspec.Struct):
    type: str = ""


class _Envelope(msgspec.Struct, tag="request"):
    """As much of a request as tells to whom its refusal belongs."""

    id: int
    call: _Call
    program: Any = None


class Unread(msgspec.Struct, frozen=True):
    """A request that fails before it was read: its arguments are not of the ABI, or the kernel takes none just now.

    It fails alone: others share its connection.
    """

    id: int
    syscall: str
    program: str
    error: AiosError


class Gate(Protocol):
    """Decides over requests before they are read; see `aios_kernel.overload.Gate`."""

    @property
    def full(self) -> bool:
        """Whether there may be a refusal at all."""
        ...

    def refusal(self, syscall: str) -> AiosError | None:
        """The error for a syscall of this name that comes now; None: it may come in."""
        ...


class _ClientFrames(FrameReader["ClientFrame | Unread"]):
    _envelope = msgspec.msgpack.Decoder(_Envelope)

    def __init__(self, gate: Gate | None) -> None:
        super().__init__(msgspec.msgpack.Decoder(ClientFrame))
        self._gate = gate

    def _decode(self, body: bytes) -> ClientFrame | Unread:
        refused = self._refused(body)
        if refused is not None:
            return refused
        try:
            return super()._decode(body)
        except ProtocolError as error:
            if not isinstance(error.__cause__, msgspec.ValidationError):
                raise
            try:
                envelope = self._envelope.decode(body)
            except (msgspec.DecodeError, RecursionError):
                raise error from error.__cause__
            wrong = InvalidRequest(
                f"the arguments cannot be read: {error.__cause__}",
                fix="correct the named argument, or install the same version of aios-kernel on both sides",
            )
            return Unread(envelope.id, envelope.call.type, str(envelope.program or ""), wrong)

    def _refused(self, body: bytes) -> Unread | None:
        """A request that is not to be taken now; as little of it is read as tells whose it is."""
        if self._gate is None or not self._gate.full:
            return None
        try:
            envelope = self._envelope.decode(body)
        except (msgspec.DecodeError, RecursionError):
            return None  # no request
        error = self._gate.refusal(envelope.call.type)
        return None if error is None else Unread(envelope.id, envelope.call.type, str(envelope.program or ""), error)


def client_frames(gate: Gate | None = None) -> FrameReader[ClientFrame | Unread]:
    """A reader for the kernel's side; `gate` decides over requests before their arguments are read."""
    return _ClientFrames(gate)


def kernel_frames() -> FrameReader[KernelFrame]:
    """A reader for the client's side."""
    return FrameReader(msgspec.msgpack.Decoder(KernelFrame))
