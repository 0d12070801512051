"""Where each expert's weights lie in a checkpoint's files, and reads of them into memory of the caller's.

Nothing is mapped: what is in memory is what somebody asked to be read, and the system's page cache is told to forget it
again, so that an expert is held once (in the expert cache) or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aios_kernel.engine import _checkpoint
from aios_kernel.engine.torch.experts.forms import ExpertShape
from aios_kernel.errors import ConfigError, Unsupported

_EACH = re.compile(r"(?:.*\.)?layers\.(\d+)\.(?:.*\.)?experts\.(\d+)\.(\w+)\.weight")
"""One tensor for an expert's gate, up or down, as published checkpoints have them."""
_FUSED = re.compile(r"(?:.*\.)?layers\.(\d+)\.(?:.*\.)?experts\.(gate_up_proj|down_proj)")
"""All experts of a layer in one tensor, as transformers holds them in memory."""
_PARTS = {"w1": "gate", "gate_proj": "gate", "w3": "up", "up_proj": "up", "w2": "down", "down_proj": "down"}
_ORDER = ("gate_up", "gate", "up", "down")
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_SAMPLED = 16
"""Experts of a layer that the digest looks at."""


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive bytes of a file."""

    file: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    file: int
    offset: int
    dtype: str
    shape: tuple[int, ...]


class ExpertFiles:
    """The experts of a model on disk; an expert's number is `place * shape.count + expert`, place among `layers`.

    Args:
        folder: of the checkpoint, which was checked (`_source.locate`).
        layers: numbers of the model's layers that have experts.
        shape: of each of them.

    Raises:
        ConfigError: experts are missing, or of another shape.
        Unsupported: they are stored in a way that is not known, or in several dtypes.
    """

    def __init__(self, folder: Path, layers: Sequence[int], shape: ExpertShape) -> None:
        self._names = [folder / name for name in _checkpoint.shards(folder)]
        parts: dict[int, dict[str, tuple[Span, str]]] = {}
        places = {layer: place for place, layer in enumerate(layers)}
        for number, path in enumerate(self._names):
            for name, tensor in _tensors(path, number).items():
                _sort(name, tensor, places, shape, parts)
        wanted = range(len(layers) * shape.count)
        missing = [number for number in wanted if not _whole(parts.get(number, {}))]
        if missing:
            raise _missing(folder, parts, missing[0], layers, shape)
        kinds = {kind for found in parts.values() for _, kind in found.values()}
        if len(kinds) != 1 or not kinds <= _DTYPES.keys():
            raise Unsupported(
                f"{folder} holds experts of dtype {', '.join(sorted(kinds))}", fix="leave expert_cache out"
            )
        self.dtype = _DTYPES[kinds.pop()]
        self._nbytes = shape.numbers * self.dtype.itemsize
        self._spans = [[parts[number][part][0] for part in _ORDER if part in parts[number]] for number in wanted]
        self._files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in self._names]
        self._count = shape.count

    def stored_bytes(self, number: int) -> int:
        """Size of an expert."""
        return self._nbytes

    def read(self, number: int, into: memoryview) -> None:
        """Read an expert: gate, up and down, each row after row. From any thread; waits without the interpreter's lock.

        Raises OSError when the file cannot be read, or is shorter than its header says.
        """
        at = 0
        for span in self._spans[number]:
            self._read(span, into[at : at + span.nbytes])
            at += span.nbytes

    def digest(self) -> str:
        """What tells these experts from others: of a sample of them, the first bytes of every tensor."""
        digest = hashlib.sha256(f"{self._count} {self.dtype}".encode())
        piece = memoryview(bytearray(64))
        for number, spans in enumerate(self._spans):
            if number % self._count < _SAMPLED:
                for span in spans:
                    self._read(Span(span.file, span.offset, min(64, span.nbytes)), piece[: min(64, span.nbytes)])
                    digest.update(piece)
        return digest.hexdigest()[:16]

    def close(self) -> None:
        """Close the files; reads fail from then on."""
        while self._files:
            os.close(self._files.pop())

    def _read(self, span: Span, into: memoryview) -> None:
        if not self._files:
            raise OSError("the files were closed")
        file, at = self._files[span.file], 0
        while at < span.nbytes:
            n = os.preadv(file, [into[at : span.nbytes]], span.offset + at)
            if n == 0:
                raise OSError(f"{self._names[span.file]} ends at byte {span.offset + at}")
            at += n
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, span.offset, span.nbytes, os.POSIX_FADV_DONTNEED)


def _tensors(path: Path, number: int) -> dict[str, _Tensor]:
    """What a safetensors file holds, from its header: its length, 8 bytes; JSON; the tensors' bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: _Tensor(number, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
    }


def _sort(
    name: str,
    tensor: _Tensor,
    places: Mapping[int, int],
    shape: ExpertShape,
    parts: dict[int, dict[str, tuple[Span, str]]],
) -> None:
    """Note a tensor with the experts that it belongs to, if there are any."""
    if (match := _EACH.fullmatch(name)) and match[3] in _PARTS and int(match[1]) in places:
        part, first, expected = _PARTS[match[3]], int(match[2]), shape.part(_PARTS[match[3]])
        found, count = tensor.shape, 1
    elif (match := _FUSED.fullmatch(name)) and int(match[1]) in places:
        part, first, expected = match[2].removesuffix("_proj"), 0, shape.part(match[2].removesuffix("_proj"))
        count, found = tensor.shape[0], tensor.shape[1:]
    else:
        return
    if found != expected or first + count > shape.count:
        raise ConfigError(
            f"{name} is of shape {list(tensor.shape)}, the configuration says {list(expected)} an expert",
            fix="check that config.json belongs to these weights, or download the model again",
        )
    nbytes = found[0] * found[1] * _DTYPES.get(tensor.dtype, torch.uint8).itemsize
    base = places[int(match[1])] * shape.count + first
    for index in range(count):
        span = Span(tensor.file, tensor.offset + index * nbytes, nbytes)
        parts.setdefault(base + index, {})[part] = span, tensor.dtype


def _whole(parts: Mapping[str, object]) -> bool:
    return "down" in parts and ("gate_up" in parts or ("gate" in parts and "up" in parts))


def _missing(
    folder: Path, parts: Mapping[int, object], number: int, layers: Sequence[int], shape: ExpertShape
) -> ConfigError | Unsupported:
    if not parts:
        return Unsupported(
            f"the experts of {folder} are not stored as w1, w2, w3, as gate_proj, up_proj, down_proj, or fused",
            fix="leave expert_cache out",
        )
    place, expert = divmod(number, shape.count)
    return ConfigError(
        f"the weights of {folder} are incomplete: expert {expert} of layer {layers[place]} is missing",
        fix="download the model again",
    )
