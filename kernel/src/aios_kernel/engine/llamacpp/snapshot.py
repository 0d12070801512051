"""A context of the llamacpp engine in host memory, and in a file."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from aios_kernel.engine.llamacpp.context import LlamaContext
from aios_kernel.engine.llamacpp.sequences import Kept
from aios_kernel.engine.protocol import Grammar, SamplingParams
from aios_kernel.errors import SnapshotError

_MAGIC = b"aios-llama-1\n"
_FIX = "run the call again; if it stays, look for other programs that write below AIOS_HOME"


@dataclass(slots=True)
class LlamaSnapshot:
    """See `aios_kernel.engine.protocol.Snapshot`. It can be restored more than once.

    Attributes:
        fingerprint: of the engine that it was taken from.
        state: the context without its KV.
        data: that KV, in llama.cpp's own form.
        kept: what stayed in the engine's cache when it was taken, and is taken up again if it is still there.
    """

    fingerprint: str
    state: LlamaContext
    data: NDArray[np.uint8]
    kept: Kept | None = None

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer."""
        return self.state.tokens

    @property
    def computed(self) -> int:
        """How many tokens have KV."""
        return self.state.computed

    @property
    def nbytes(self) -> int:
        """Size of the KV."""
        return self.data.nbytes

    def save(self, path: Path) -> None:
        """See `aios_kernel.engine.protocol.Snapshot.save`: a line of JSON, then the KV; a checksum over both."""
        state = msgspec.json.encode(_State.of(self))
        header = json.dumps({"state": len(state), "kv": self.nbytes, "checksum": _checksum(state, self.data)})
        try:
            _write(path, [_MAGIC, header.encode(), b"\n", state, self.data.data])
        except OSError as error:
            fix = f"free space below {path.parent}, or set kv_disk_bytes = 0 in aios.toml"
            raise SnapshotError(f"a snapshot cannot be written to {path}: {error}", fix=fix) from error


class _State(msgspec.Struct, frozen=True):
    """All of a snapshot but its KV."""

    fingerprint: str
    tokens: list[int]
    sampling: SamplingParams
    lora: str | None
    salt: bytes
    counts: dict[str, int]
    grammar: str | None

    @classmethod
    def of(cls, snapshot: LlamaSnapshot) -> _State:
        state = snapshot.state
        counts = {name: getattr(state, name) for name in ("prompt", "computed", "cached", "emitted")}
        grammar = state.grammar.dump() if state.grammar is not None else None
        return cls(snapshot.fingerprint, state.tokens, state.sampling, state.lora, state.salt, counts, grammar)

    def context(self, grammar: Callable[[str], Grammar] | None) -> LlamaContext:
        made = None if self.grammar is None else _grammar_of(self.grammar, grammar)
        context = LlamaContext(self.tokens, self.sampling, made, self.lora, self.salt)
        for name, count in self.counts.items():
            setattr(context, name, count)
        return context


def load(path: Path, grammar: Callable[[str], Grammar] | None) -> LlamaSnapshot:
    """Read what `LlamaSnapshot.save` wrote, in this process or another. Raises SnapshotError."""
    try:
        raw = path.read_bytes()
        head, _, rest = raw.removeprefix(_MAGIC).partition(b"\n")
        sizes: dict[str, Any] = json.loads(head) if raw.startswith(_MAGIC) else {}
        state, data = rest[: sizes["state"]], np.frombuffer(rest, dtype=np.uint8, offset=sizes["state"])
        if len(data) != sizes["kv"] or _checksum(state, data) != sizes["checksum"]:
            raise ValueError("it is cut short or damaged")
        found = msgspec.json.decode(state, type=_State)
    except (OSError, KeyError, ValueError, MemoryError) as error:
        raise SnapshotError(f"the snapshot {path} cannot be read: {error or type(error).__name__}", fix=_FIX) from error
    return LlamaSnapshot(found.fingerprint, found.context(grammar), data)


def _grammar_of(dump: str, grammar: Callable[[str], Grammar] | None) -> Grammar:
    if grammar is None:
        raise SnapshotError("the snapshot has a grammar, and nothing was given to make it again with")
    try:
        return grammar(dump)
    except Exception as error:  # a compiler's error of any kind
        raise SnapshotError(f"the snapshot's grammar cannot be made again: {error}") from error


def _checksum(state: bytes, data: NDArray[np.uint8]) -> str:
    return f"{zlib.crc32(data.data, zlib.crc32(state)):08x}"


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """A file that only this user can read, whole or not at all."""
    building = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)
