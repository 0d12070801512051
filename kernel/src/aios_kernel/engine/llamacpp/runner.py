"""A context of llama.cpp: it computes batches of many sequences and holds their KV in one common buffer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios_kernel.engine.llamacpp.model import LlamaModel
from aios_kernel.errors import ConfigError, EngineError

_PADDING = 256
"""llama.cpp makes buffers of multiples of this."""
WANTED = 512
"""Tokens of a batch that may be wanted: llama.cpp aborts the process for more. Also what it computes at once."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a context is made for.

    Attributes:
        tokens: that have room in its buffer, of all sequences together.
        sequences: at once.
        step: tokens of one batch.
        threads: 0: llama.cpp's choice.
        kind: of keys and values, a number of `GGML_TYPE_...`.
        embeddings: it gives hidden states, and no logits.
    """

    tokens: int
    sequences: int
    step: int
    threads: int = 0
    kind: int = 1
    embeddings: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens of a sequence to compute, the first of them at `start`; `wanted`: places among them to report."""

    sequence: int
    start: int
    tokens: Sequence[int]
    wanted: Sequence[int]


class LlamaRunner:
    """One context. Raises ConfigError when there is no memory for it."""

    def __init__(self, model: LlamaModel, sizes: Sizes) -> None:
        self._api, self._model, self.sizes = model.api, model, sizes
        self._context = self._new(sizes)
        self._memory = self._api.llama_get_memory(self._context)
        self._batch = _Batch(self._api, sizes.step)
        self._lora: Any = None

    def adapt(self, lora: Any) -> None:
        """Compute what follows with this adapter, None for the plain model."""
        if lora is self._lora:
            return
        used = [] if lora is None else [lora]
        adapters, scales = (self._api.llama_adapter_lora_p_ctypes * len(used))(*used), (ctypes.c_float * 1)(1.0)
        if self._api.llama_set_adapters_lora(self._context, adapters, len(used), scales) != 0:
            raise EngineError("llama.cpp cannot apply a LoRA adapter", fix="aios doctor --log")
        self._lora = lora

    def compute(self, runs: Sequence[Run]) -> NDArray[np.float32]:
        """One forward; gives what is reported of the wanted tokens, [wanted, vocab or hidden size].

        Raises EngineError; the sequences hold then what they held before.
        """
        places = self._batch.fill(runs)
        code = self._api.llama_decode(self._context, self._batch.struct)
        if code != 0:
            for run in runs:
                self.cut(run.sequence, run.start)
            raise EngineError(
                f"llama.cpp could not compute a batch (llama_decode gave {code})", fix="aios doctor --log"
            )
        embeddings = self.sizes.embeddings
        read = self._api.llama_get_embeddings_ith if embeddings else self._api.llama_get_logits_ith
        width = self._model.width if embeddings else self._model.vocab
        rows = np.empty((len(places), width), dtype=np.float32)
        for row, place in enumerate(places):
            rows[row] = np.ctypeslib.as_array(read(self._context, place), (width,))
        return rows

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Let `target`, which is empty, share the first tokens of `source`."""
        self._api.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)

    def cut(self, sequence: int, n_tokens: int = 0) -> None:
        """Forget all but the first tokens of a sequence."""
        self._api.llama_memory_seq_rm(self._memory, sequence, n_tokens, -1)

    def clear(self) -> None:
        """Forget all sequences."""
        self._api.llama_memory_clear(self._memory, False)

    def read(self, sequence: int) -> NDArray[np.uint8]:
        """The KV of a sequence, in llama.cpp's own form. Raises MemoryError, EngineError."""
        data = np.empty(self._api.llama_state_seq_get_size(self._context, sequence), dtype=np.uint8)
        if self._api.llama_state_seq_get_data(self._context, _pointer(data), len(data), sequence) != len(data):
            raise EngineError("llama.cpp could not copy the KV of a sequence")
        return data

    def write(self, sequence: int, data: NDArray[np.uint8]) -> None:
        """Bring the KV of a sequence back. Raises EngineError; the sequence is empty then."""
        if self._api.llama_state_seq_set_data(self._context, _pointer(data), len(data), sequence) == 0:
            self.cut(sequence)
            raise EngineError("llama.cpp does not take the KV of a sequence back")

    def close(self) -> None:
        """Free the buffer."""
        if self._context is not None:
            self._api.llama_free(self._context)
        self._context = None

    def _new(self, sizes: Sizes) -> Any:
        settings = self._api.llama_context_default_params()
        settings.n_ctx = -(-sizes.tokens // _PADDING) * _PADDING
        settings.n_batch, settings.n_seq_max = sizes.step, sizes.sequences
        settings.n_ubatch = settings.n_outputs_max = settings.n_outputs_max_per_seq = WANTED
        settings.kv_unified = True  # sequences share cells, and none has a share of its own that the others cannot use
        settings.swa_full = True  # else a model with sliding windows forgets what a fork or a prefix needs
        settings.type_k = settings.type_v = sizes.kind
        settings.embeddings = sizes.embeddings
        settings.no_perf = True
        if sizes.embeddings:
            settings.pooling_type = self._api.LLAMA_POOLING_TYPE_NONE
        if sizes.threads:
            settings.n_threads = settings.n_threads_batch = sizes.threads
        context = self._api.llama_init_from_model(self._model.handle, settings)
        if not context:
            raise ConfigError(
                f"llama.cpp finds no memory for a KV buffer of {sizes.tokens:,} tokens", fix="set a smaller kv_tokens"
            )
        return context


class _Batch:
    """The arrays of a `llama_batch`, filled as a whole."""

    def __init__(self, api: Any, n_tokens: int) -> None:
        self.struct = api.llama_batch()
        self._tokens = np.zeros(n_tokens, dtype=np.int32)
        self._positions = np.zeros(n_tokens, dtype=np.int32)
        self._counts = np.ones(n_tokens, dtype=np.int32)
        self._sequences = np.zeros(n_tokens, dtype=np.int32)
        self._wanted = np.zeros(n_tokens, dtype=np.int8)
        # Every token belongs to one sequence; the structure wants an array of them for each.
        self._addresses = self._sequences.ctypes.data + 4 * np.arange(n_tokens, dtype=np.uint64)
        arrays = {
            "token": self._tokens, "pos": self._positions, "n_seq_id": self._counts, "seq_id": self._addresses,
            "logits": self._wanted,
        }  # fmt: skip
        for name, kind in self.struct._fields_:
            if name in arrays:
                setattr(self.struct, name, ctypes.cast(arrays[name].ctypes.data, kind))
            elif name == "embd":
                setattr(self.struct, name, kind())

    def fill(self, runs: Sequence[Run]) -> list[int]:
        """Lay the runs one behind the other; give the places of what is wanted of them."""
        end, places = 0, list[int]()
        for run in runs:
            begin, end = end, end + len(run.tokens)
            self._tokens[begin:end] = run.tokens
            self._positions[begin:end] = np.arange(run.start, run.start + len(run.tokens))
            self._sequences[begin:end] = run.sequence
            self._wanted[begin:end] = 0
            places += [begin + place for place in run.wanted]
        self._wanted[places] = 1
        self.struct.n_tokens = end
        return places


def _pointer(data: NDArray[np.uint8]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
