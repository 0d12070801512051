"""Experts that are seldom used, in int8: half to a quarter of the bytes, at a loss that is measured.

They lie in a safetensors file in the user's cache folder, made once for a checkpoint. Which experts are in it is
settled then, so that what is computed does not depend on what happens to be in memory.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from aios_kernel.engine.torch.experts.forms import ExpertShape, int8_bytes, to_int8
from aios_kernel.engine.torch.experts.transfer import Store, memory_of


@dataclass(frozen=True, slots=True)
class Loss:
    """What int8 costs, over the tokens that it was measured with."""

    logit_difference: float
    """The largest of any logit."""
    perplexity_ratio: float
    """Of text that the model itself would write: the exponential of the mean divergence (Kullback-Leibler)."""
    tokens: int


def loss_of(full: Tensor, cold: Tensor) -> Loss:
    """Compare the logits of the same tokens, [tokens, vocab], in full precision and with cold experts."""
    expected, found = full.float().log_softmax(-1), cold.float().log_softmax(-1)
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    return Loss(float((full.float() - cold.float()).abs().max()), float(divergence.exp()), len(full))


class ColdExperts:
    """The experts in such a file.

    Args:
        path: of the file.
        shape: of an expert.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged, or of another shape.
    """

    def __init__(self, path: Path, shape: ExpertShape) -> None:
        self.path, self._nbytes = path, int8_bytes(shape)
        self.digest = path.stem
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._base, numbers = self._header()
        except BaseException:
            os.close(self._file)
            raise
        self._places = {number: place for place, number in enumerate(numbers)}

    @property
    def loss(self) -> Loss | None:
        """What was measured when the file was made."""
        try:
            return Loss(**json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @loss.setter
    def loss(self, loss: Loss) -> None:
        _write(self.path.with_suffix(".json"), lambda file: os.write(file, json.dumps(asdict(loss)).encode()))

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __len__(self) -> int:
        return len(self._places)

    def stored_bytes(self, number: int) -> int:
        """See `Store`."""
        return self._nbytes

    def read(self, number: int, into: memoryview) -> None:
        """See `Store`."""
        start, at = self._base + self._places[number] * self._nbytes, 0
        while at < self._nbytes:
            n = os.preadv(self._file, [into[at:]], start + at)
            if n == 0:
                raise OSError(f"{self.path} ends at byte {start + at}")
            at += n
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, start, self._nbytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file; reads fail from then on."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _header(self) -> tuple[int, list[int]]:
        length = int.from_bytes(os.pread(self._file, 8, 0), "little")
        size = os.fstat(self._file).st_size
        if not 0 < length < size:
            raise ValueError(f"{self.path} is no safetensors file")
        header = json.loads(os.pread(self._file, length, 8))
        numbers = json.loads(header["__metadata__"]["numbers"])
        if header["experts"]["shape"] != [len(numbers), self._nbytes]:
            raise ValueError(f"{self.path} holds other experts")
        if size != 8 + length + len(numbers) * self._nbytes:
            raise ValueError(f"{self.path} is cut short")
        return 8 + length, numbers


class WithCold:
    """Cold experts from their own file, the others from the checkpoint."""

    def __init__(self, store: Store, cold: ColdExperts) -> None:
        self._store, self._cold = store, cold

    def read(self, number: int, into: memoryview) -> None:
        """See `Store`."""
        (self._cold if number in self._cold else self._store).read(number, into)

    def stored_bytes(self, number: int) -> int:
        """See `Store`."""
        return (self._cold if number in self._cold else self._store).stored_bytes(number)

    def close(self) -> None:
        """See `Store`."""
        self._cold.close()
        self._store.close()


def make_cold(path: Path, store: Store, stored: torch.dtype, shape: ExpertShape, numbers: Sequence[int]) -> None:
    """Write experts of a store in int8, one at a time; whole or not at all. Raises OSError.

    Args:
        path: of the file to make.
        store: of the experts.
        stored: their dtype.
        shape: of an expert.
        numbers: which ones.
    """
    size = len(numbers) * int8_bytes(shape)
    entry = {"dtype": "U8", "shape": [len(numbers), int8_bytes(shape)], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"numbers": json.dumps(list(numbers))}, "experts": entry}).encode()
    header += b" " * (-len(header) % 8)

    def write(file: int) -> None:
        _write_all(file, len(header).to_bytes(8, "little") + header)
        for number in numbers:
            piece = torch.empty(store.stored_bytes(number), dtype=torch.uint8)
            store.read(number, memory_of(piece))
            _write_all(file, memory_of(to_int8(piece.view(stored), shape)))

    _write(path, write)


def _write(path: Path, write: Callable[[int], object]) -> None:
    """Make a file that only this user can read, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file, name = tempfile.mkstemp(dir=path.parent)
    try:
        write(file)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    finally:
        os.close(file)


def _write_all(file: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while len(rest):
        rest = rest[os.write(file, rest) :]
