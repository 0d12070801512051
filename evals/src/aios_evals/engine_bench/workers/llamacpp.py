"""llama.cpp by its low-level API: one batch of many sequences a step; a conversation keeps its sequence and its KV.

Runs in the environment that `make bench-peers` makes. What all prompts of a call share is computed in the first
sequence and copied to the others. Of its settings those are taken that were fastest here: a KV buffer of its own for
every sequence; flash attention for long single prompts and for batches in bfloat16; keys and values in the weights'
dtype, but in float16 (its default) for a single sequence of bfloat16.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from aios_evals.engine_bench.workers import gguf_file

_POOL_TOKENS = 16_384
_STEP_TOKENS = 2048
_ROOM = 8192
"""Tokens that a single sequence has room for at least; many share the pool, with room for conversations to grow."""
_LONG = 512


class _Sizes(NamedTuple):
    """What a context of llama.cpp is made for."""

    sequences: int
    room: int
    long: bool

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], n_tokens: int) -> _Sizes:
        longest = max(len(prompt) for prompt in prompts) + n_tokens
        room = max(1 << (longest - 1).bit_length(), min(_ROOM, _POOL_TOKENS // len(prompts)))
        return cls(len(prompts), room, len(prompts) == 1 and longest > _LONG)


class LlamaPeer:
    """See `loop.Peer`."""

    def __init__(self, api: Any, weights: Any, dtype: str, threads: int) -> None:
        self.versions = {"llama-cpp-python": importlib.metadata.version("llama-cpp-python")}
        self._api = api
        self._numpy: Any = importlib.import_module("numpy")
        self._kinds: Any = importlib.import_module("gguf").GGMLQuantizationType
        self._weights = weights
        self._vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(weights))
        self._dtype = dtype
        self._threads = threads
        self._sizes: _Sizes | None = None
        self._context: Any = None
        self._memory: Any = None
        self._batch = api.llama_batch_init(_STEP_TOKENS, 0, 1)
        self._held: list[list[int]] = []
        """Tokens of each sequence that have KV."""

    def generate(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> list[list[int]]:
        """See `loop.Peer.generate`."""
        self._fit(_Sizes.of(prompts, n_tokens))
        self._keep_prefixes(prompts)
        self._share_prefix(prompts)
        answers = [[token] for token in self._prefill(prompts)]
        while len(answers[0]) < n_tokens:
            best = self._run([(row, answer[-1], True) for row, answer in enumerate(answers)])
            for answer, token in zip(answers, best, strict=True):
                answer.append(token)
        return answers

    def close(self) -> None:
        """See `loop.Peer.close`."""
        self._fit(None)
        self._api.llama_batch_free(self._batch)
        self._api.llama_model_free(self._weights)

    def _fit(self, sizes: _Sizes | None) -> None:
        """Make a context of these sizes unless there is one."""
        if sizes == self._sizes:
            return
        if self._context is not None:
            self._api.llama_free(self._context)
        self._sizes, self._context = sizes, None
        if sizes is not None:
            self._context = self._new_context(sizes)
            self._memory = self._api.llama_get_memory(self._context)
            self._held = [[] for _ in range(sizes.sequences)]

    def _new_context(self, sizes: _Sizes) -> Any:
        many, exact = sizes.sequences > 1, self._dtype == "float32"
        settings = self._api.llama_context_default_params()
        settings.n_ctx = sizes.sequences * sizes.room
        settings.n_batch, settings.n_seq_max = _STEP_TOKENS, sizes.sequences
        settings.n_threads = settings.n_threads_batch = self._threads
        settings.kv_unified = False
        settings.flash_attn_type = int(not exact if many else sizes.long)
        kind = "F32" if exact else "BF16" if many else "F16"
        settings.type_k = settings.type_v = self._kinds[kind].value
        context = self._api.llama_init_from_model(self._weights, settings)
        if not context:
            raise RuntimeError(f"llama.cpp makes no context for {sizes}")
        return context

    def _keep_prefixes(self, prompts: Sequence[Sequence[int]]) -> None:
        """Cut every sequence back to what its prompt begins with; one token at least is left to compute."""
        for row, (held, prompt) in enumerate(zip(self._held, prompts, strict=True)):
            keep = min(_common(held, prompt), len(prompt) - 1)
            if keep < len(held):
                self._api.llama_memory_seq_rm(self._memory, row, keep, -1)
                del held[keep:]

    def _share_prefix(self, prompts: Sequence[Sequence[int]]) -> None:
        """Compute once what all prompts begin with, if that is more than any sequence has of it."""
        shared = min((min(_common(prompts[0], other), len(other) - 1) for other in prompts[1:]), default=0)
        shared = min(shared, len(prompts[0]) - 1)
        if shared <= max(len(held) for held in self._held):
            return
        self._run([(0, token, False) for token in prompts[0][len(self._held[0]) : shared]])
        for row in range(1, len(prompts)):
            self._api.llama_memory_seq_rm(self._memory, row, 0, -1)
            self._api.llama_memory_seq_cp(self._memory, 0, row, -1, -1)
            self._held[row] = list(prompts[0][:shared])

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Compute what is missing; give the first token of every answer."""
        entries: list[tuple[int, int, bool]] = []
        for row, prompt in enumerate(prompts):
            missing = prompt[len(self._held[row]) :]
            entries.extend((row, token, at == len(missing) - 1) for at, token in enumerate(missing))
        return self._run(entries)

    def _run(self, entries: Sequence[tuple[int, int, bool]]) -> list[int]:
        """Compute (sequence, token, whether its logits matter) in batches; give the best tokens of those that do."""
        found: list[int] = []
        for start in range(0, len(entries), _STEP_TOKENS):
            part = entries[start : start + _STEP_TOKENS]
            self._decode(part)
            found.extend(self._best(place) for place, (_, _, wanted) in enumerate(part) if wanted)
        return found

    def _decode(self, entries: Sequence[tuple[int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for place, (row, token, wanted) in enumerate(entries):
            batch.token[place] = token
            batch.pos[place] = len(self._held[row])
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = row
            batch.logits[place] = wanted
            self._held[row].append(token)
        if self._api.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def _best(self, place: int) -> int:
        logits = self._api.llama_get_logits_ith(self._context, place)
        return int(self._numpy.ctypeslib.as_array(logits, (self._vocab,)).argmax())


def load(model: str, dtype: str, threads: int) -> LlamaPeer:
    """See `loop.Load`."""
    file = gguf_file.ensure(Path(model), dtype)
    api: Any = importlib.import_module("llama_cpp")
    api.llama_backend_init()
    weights = api.llama_model_load_from_file(os.fsencode(file), api.llama_model_default_params())
    if not weights:
        raise RuntimeError(f"llama.cpp cannot load {file}")
    return LlamaPeer(api, weights, dtype, threads)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
