"""Snapshots on disk: safetensors with the KV as tensors and everything else as JSON in the header.

A checksum over both guards against damage (not against somebody who can write the user's own files).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from aios_kernel.engine.protocol import Grammar, SamplingParams
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.host import HostMemory
from aios_kernel.engine.torch.lora.adapter import Adapter
from aios_kernel.engine.torch.snapshot import TorchSnapshot, new_snapshot
from aios_kernel.errors import SnapshotError
from aios_kernel.failpoints import failpoint

FORMAT = "aios-context-1"
_FIX = "run the call again; if it stays, look for other programs that write below AIOS_HOME"


_PIECE = 2 << 20
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class _Part(msgspec.Struct, frozen=True):
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _State(msgspec.Struct, frozen=True):
    """A context but for its KV."""

    fingerprint: str
    pool: str
    blocks: list[tuple[int, int]]
    tokens: list[int]
    prompt: int
    computed: int
    cached: int
    emitted: int
    sampling: SamplingParams
    root: bytes
    grammar: str | None
    lora: str | None = None
    """Name of its adapter; the fingerprint has the adapter's content."""


def state_of(context: TorchContext, fingerprint: str, pool: str, blocks: list[tuple[int, int]]) -> bytes:
    """All of a snapshot but its KV, as JSON."""
    state = _State(
        fingerprint=fingerprint,
        pool=pool,
        blocks=blocks,
        tokens=context.tokens,
        prompt=context.prompt,
        computed=context.computed,
        cached=context.cached,
        emitted=context.emitted,
        sampling=context.sampling,
        root=context.root,
        grammar=context.grammar.dump() if context.grammar is not None else None,
        lora=context.lora.name if context.lora is not None else None,
    )
    return msgspec.json.encode(state)


def write(path: Path, state: bytes, data: Sequence[Tensor]) -> None:
    """Write a snapshot: readable by this user only, whole or not at all.

    Args:
        path: where to; its folder exists.
        state: from `state_of`.
        data: the KV.

    Raises:
        SnapshotError: the disk is full or the folder is gone; no file is left.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    parts = {f"kv.{number:04}": part for number, part in enumerate(data)}
    metadata = {"format": FORMAT, "state": state.decode(), "checksum": _checksum(state, data)}
    building = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # The file is made here, because the library would make it readable by everybody.
        os.close(os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        failpoint("context.created")
        save_file(parts, building, metadata)
        failpoint("context.written")
        _sync(building)
        failpoint("context.synced")
        building.replace(path)
        failpoint("context.saved")
    except (OSError, SafetensorError) as error:
        raise SnapshotError(f"a snapshot cannot be written to {path}: {error}", fix=_room(path)) from error
    finally:
        building.unlink(missing_ok=True)


def read(
    path: Path, grammar: Callable[[str], Grammar] | None, host: HostMemory, loras: Callable[[str], Adapter]
) -> TorchSnapshot:
    """Read a snapshot that `write` wrote, in this process or another.

    The file goes straight into the snapshot's memory; the library would map it, whose pages go when it is cut short.

    Args:
        path: of the file.
        grammar: gives a grammar for what its `dump` gave.
        host: gives the memory.
        loras: gives an adapter by its name, or raises SnapshotError.

    Raises:
        SnapshotError: the file is gone, cut short, damaged or no snapshot, its grammar cannot be made again, or its
            adapter is not loaded.
    """
    try:
        with path.open("rb", buffering=0) as file:
            header = _header(file)
            raw = header.metadata["state"].encode()
            state = msgspec.json.decode(raw, type=_State)
            snapshot = _snapshot_of(state, header, host)
            checksum = _fill(snapshot, file, zlib.crc32(raw))
    except (OSError, KeyError, ValueError, MemoryError) as error:
        raise SnapshotError(f"the snapshot {path} cannot be read: {error}", fix=_FIX) from error
    if header.metadata.get("format") != FORMAT or header.metadata.get("checksum") != f"{checksum:08x}":
        raise SnapshotError(f"the snapshot {path} is damaged or of another version", fix=_FIX)
    if state.grammar is not None:
        snapshot.state.grammar = _grammar_of(state.grammar, grammar)
    if state.lora is not None:
        snapshot.state.lora = loras(state.lora)
    return snapshot


class _Header(NamedTuple):
    metadata: dict[str, str]
    shapes: list[tuple[int, ...]]
    dtype: torch.dtype


def _header(file: FileIO) -> _Header:
    """The header of a safetensors file: its length in 8 bytes, then JSON. Raises ValueError for a strange one."""
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= os.fstat(file.fileno()).st_size - 8:
        raise ValueError("it is cut short")
    entries = msgspec.json.decode(file.read(length), type=dict[str, dict[str, Any]])
    metadata = msgspec.convert(entries.pop("__metadata__"), dict[str, str])
    parts = msgspec.convert([entries[name] for name in sorted(entries)], list[_Part])
    place = 0
    for part in parts:  # one behind the other, in the order of their names
        if part.data_offsets[0] != place or part.dtype != parts[0].dtype:
            raise ValueError("it is no snapshot")
        place = part.data_offsets[1]
    if os.fstat(file.fileno()).st_size != 8 + length + place:
        raise ValueError("it is cut short")
    return _Header(metadata, [part.shape for part in parts], _DTYPES[parts[0].dtype])


def _fill(snapshot: TorchSnapshot, file: FileIO, checksum: int) -> int:
    """Read the tensors piece by piece; the checksum of one is made while the system fetches the next."""
    for part in snapshot.data:
        raw = _bytes(part)
        for begin in range(0, len(raw), _PIECE):
            piece = raw[begin : begin + _PIECE]
            if file.readinto(piece) != len(piece):
                raise ValueError("it is cut short")
            checksum = zlib.crc32(piece, checksum)
    return checksum


def _snapshot_of(state: _State, header: _Header, host: HostMemory) -> TorchSnapshot:
    """The snapshot with room for its data, and without its grammar."""
    context = TorchContext(state.tokens, sampling=state.sampling, root=state.root)
    context.prompt, context.computed = state.prompt, state.computed
    context.cached, context.emitted = state.cached, state.emitted
    named = (state.fingerprint, state.pool)
    return new_snapshot(host, context, header.shapes, header.dtype, named=named, blocks=state.blocks)


def _grammar_of(dump: str, grammar: Callable[[str], Grammar] | None) -> Grammar:
    if grammar is None:
        raise SnapshotError("the snapshot has a grammar, and nothing was given to make it again with")
    try:
        return grammar(dump)
    except Exception as error:  # a compiler's error of any kind
        raise SnapshotError(f"the snapshot's grammar cannot be made again: {error}") from error


def _checksum(state: bytes, data: Sequence[Tensor]) -> str:
    total = zlib.crc32(state)
    for part in data:
        total = zlib.crc32(_bytes(part), total)
    return f"{total:08x}"


def _bytes(part: Tensor) -> memoryview:
    raw: Any = part.reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)


def _sync(path: Path) -> None:
    """Bring a file to the disk: what was moved out of memory must not stay there as dirty pages."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _room(path: Path) -> str:
    return f"free space below {path.parent}, or set kv_disk_bytes = 0 in aios.toml"
