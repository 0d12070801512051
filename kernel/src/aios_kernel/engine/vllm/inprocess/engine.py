"""The engine contract over vLLM in process."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from aios_kernel.engine.protocol import (
    Capabilities,
    Context,
    Grammar,
    KvExhausted,
    SamplingParams,
    Snapshot,
    StepOutput,
)
from aios_kernel.engine.vllm.inprocess.context import KEY, VllmContext
from aios_kernel.engine.vllm.inprocess.core import VllmCore
from aios_kernel.engine.vllm.inprocess.hooks import TESTED
from aios_kernel.errors import ConfigError, EngineError, SnapshotError, UnknownModel, Unsupported

OFFERED = Capabilities(step_control=True, snapshot=True, grammar=True, logprobs=True, lora=True)
"""LoRA where adapters were loaded."""


@dataclass(slots=True)
class VllmSnapshot:
    """See `aios_kernel.engine.protocol.Snapshot`. `data`: KV of its blocks, one tensor a layer."""

    fingerprint: str
    state: VllmContext
    data: list[Any]

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
        return sum(part.nbytes for part in self.data)

    def save(self, path: Path) -> None:
        """Not offered."""
        raise Unsupported("vLLM's snapshots stay in memory", fix="serve it by the torch engine: aios serve PATH")


class VllmStepEngine:
    """See `aios_kernel.engine.protocol.Engine`.

    Args:
        core: the model; closed with the engine.
        name: of the model, for the fingerprint.
        kv_tokens: of its pool that are used; None: all.
    """

    name = "vllm-inprocess"

    def __init__(self, core: VllmCore, name: str, kv_tokens: int | None = None) -> None:
        self._core = core
        self._ids = itertools.count()
        self._live: set[VllmContext] = set()
        blocks = core.blocks if kv_tokens is None else min(core.blocks, kv_tokens // core.block_size)
        self._unused = core.blocks - blocks
        self.fingerprint = f"vllm:{TESTED}:{core.dtype}:{core.block_size}:{name}"
        self.capabilities = dataclasses.replace(
            OFFERED,
            lora=core.max_loras > 0,
            block_size=core.block_size,
            kv_tokens=blocks * core.block_size,
            max_batch=core.max_batch,
            max_step_tokens=core.max_step_tokens,
            vocab=core.vocab,
        )

    def load_lora(self, name: str, source: str) -> None:
        """Name an adapter; the engine must have been made with room for it. Raises ConfigError, UnknownModel."""
        folder = Path(source).expanduser()
        if name not in self._core.loras and len(self._core.loras) >= self._core.max_loras:
            raise ConfigError("vLLM was started with room for fewer adapters", fix="name all of them at the start")
        if not (folder / "adapter_config.json").is_file():
            raise UnknownModel(f'the LoRA adapter "{name}" is not in {folder}', fix="name a folder in PEFT format")
        self._core.add_lora(name, folder)

    def unload_lora(self, name: str) -> None:
        """Not offered."""
        self._lacks("unloading of adapters")

    def prefetch_lora(self, name: str) -> None:
        """Nothing to do: vLLM loads an adapter with its first request. Raises UnknownModel."""
        self._core.lora(name)

    def loras(self) -> Mapping[str, int]:
        """The adapters by name; they take no room in the KV pool."""
        return dict.fromkeys(self._core.loras, 0)

    def open(
        self,
        tokens: Sequence[int],
        *,
        sampling: SamplingParams,
        grammar: Grammar | None = None,
        lora: str | None = None,
        salt: bytes = b"",
    ) -> VllmContext:
        """See `Engine.open`. What is cached is attached in its first step."""
        if lora is not None and not self.capabilities.lora:
            self._lacks("LoRA")
        self._core.lora(lora)
        if sampling.prompt_logprobs is not None:
            self._lacks("log-probabilities of prompts")
        self._check_tokens(tokens)
        context = VllmContext.of(tokens, sampling, grammar, lora, salt)
        self._live.add(context)
        return context

    def append(self, context: VllmContext, tokens: Sequence[int]) -> None:
        """See `Engine.append`. vLLM's request ends; the next one finds its full blocks in the prefix cache."""
        own = self._own(context)
        self._check_tokens(tokens)
        self._end(own)
        own.computed, own.stored = 0, None
        own.tokens.extend(tokens)

    def step(self, plan: Sequence[tuple[VllmContext, int]]) -> list[StepOutput]:
        """See `Engine.step`."""
        entries = [(self._own(context), min(n, context.pending)) for context, n in plan]
        if len({id(context) for context, _ in entries}) != len(entries):
            raise ValueError("a plan names a context twice")
        needed = sum(self.kv_need(context, n) for context, n in entries)
        if needed > self.kv_free():
            raise KvExhausted(f"blocks for {needed} tokens needed, {self.kv_free()} available")
        outputs = {id(context): StepOutput(context, 0) for context, _ in entries}
        for group in self._forwards([(context, n) for context, n in entries if n]):
            outputs |= {id(output.context): output for output in self._run(group)}
        return [outputs[id(context)] for context, _ in entries]

    def fork(
        self,
        context: VllmContext,
        *,
        at: int | None = None,
        sampling: SamplingParams | None = None,
        grammar: Grammar | None = None,
    ) -> VllmContext:
        """Not offered: vLLM's requests share full blocks by the prefix cache alone."""
        self._lacks("forks")

    def snapshot(self, context: VllmContext) -> VllmSnapshot:
        """See `Engine.snapshot`: its blocks are copied, tokens of the answer included, and its request ends."""
        own = self._own(context)
        data = own.stored or []
        try:
            if own.computed and own.stored is None:
                data = self._core.worker_side.read(self._blocks_of(own))
        except MemoryError as error:
            raise SnapshotError("there is no host memory for the context") from error
        snapshot = VllmSnapshot(self.fingerprint, own.twin(), data)
        self.release(own)
        return snapshot

    def restore(self, snapshot: Snapshot) -> VllmContext:
        """See `Engine.restore`. The KV comes back in its next step; its blocks are counted as taken until then."""
        if not isinstance(snapshot, VllmSnapshot) or snapshot.fingerprint != self.fingerprint:
            raise SnapshotError(f"a snapshot of {snapshot.fingerprint} cannot continue on {self.fingerprint}")
        context = snapshot.state.twin()
        if self._rounded(context.computed) > self.kv_free():
            raise KvExhausted("too few blocks for the snapshot")
        context.stored = snapshot.data if context.computed else None
        self._live.add(context)
        return context

    def release(self, context: VllmContext) -> None:
        """See `Engine.release`. Full blocks stay in vLLM's prefix cache."""
        if not context.closed:
            self._end(context)
            context.closed, context.stored = True, None
            self._live.discard(context)

    def embed(self, texts: Sequence[Sequence[int]]) -> Iterator[list[list[float]]]:
        """Not offered."""
        self._lacks("embeddings")

    def kv_free(self) -> int:
        """See `Engine.kv_free`; less what restored contexts are about to take."""
        promised = sum(self._rounded(context.computed) for context in self._live if context.stored is not None)
        return (self._core.pool.get_num_free_blocks() - self._unused) * self._core.block_size - promised

    def kv_need(self, context: VllmContext, n_tokens: int) -> int:
        """See `Engine.kv_need`. For a prompt that vLLM has not seen: with what of it lies unused in its cache."""
        if context.entered or context.stored is not None:
            return self._rounded(context.computed + n_tokens) - self._rounded(context.computed)
        if not n_tokens:
            return 0
        blocks, found, *_ = self._core.manager.get_computed_blocks(self._request(context))
        shared = sum(block.ref_cnt > 0 for block in blocks.blocks[0])
        end = max(n_tokens, found + 1)
        return self._rounded(end) - shared * self._core.block_size

    def close(self) -> None:
        """Free the model and the pool."""
        self._core.close()

    def _forwards(self, entries: list[tuple[VllmContext, int]]) -> list[list[tuple[VllmContext, int]]]:
        """What vLLM can compute at once: its CPU build gives rows without an adapter the last one of a mixed batch."""
        if not (self._core.on_cpu and self.capabilities.lora):
            return [entries] if entries else []
        groups = ([entry for entry in entries if (entry[0].lora is None) is plain] for plain in (True, False))
        return [group for group in groups if group]

    def _run(self, entries: Sequence[tuple[VllmContext, int]]) -> list[StepOutput]:
        """One step of vLLM."""
        before = [context.computed for context, _ in entries]
        scheduler = self._core.scheduler
        scheduler.plan = {self._enter(context): n for context, n in entries}
        self._core.core.step()
        if not scheduler.scheduled:
            raise EngineError("vLLM scheduled nothing of what the kernel planned", fix="aios doctor --log")
        return [self._settle(context, start) for (context, _), start in zip(entries, before, strict=True)]

    def _settle(self, context: VllmContext, start: int) -> StepOutput:
        """Make the step's result part of the context, which had `start` tokens computed before it."""
        if context.request is None or context.request.request_id not in self._core.scheduler.scheduled:
            return StepOutput(context, 0)
        computed = self._core.scheduler.scheduled[context.request.request_id]
        choice, context.choice, context.stored = context.choice, None, None
        self._core.scheduler.restored.discard(context.request.request_id)
        context.computed = context.request.num_computed_tokens
        attached = context.computed - computed - start
        context.cached += max(0, min(attached, context.prompt - start))
        if not context.emits:
            return StepOutput(context, computed)
        if choice is None:
            raise EngineError("vLLM did not ask for a token's choice", fix="aios doctor --log")
        if choice.error is not None:
            return StepOutput(context, computed, error=choice.error)
        context.tokens.append(choice.token)
        if context.request.all_token_ids[-1] != choice.token:
            raise EngineError("vLLM emitted another token than was chosen", fix="aios doctor --log")
        return StepOutput(
            context,
            computed,
            token=choice.token,
            argmax=choice.argmax,
            margin=choice.margin,
            logprob=choice.logprob,
            top=choice.top,
        )

    def _request(self, context: VllmContext) -> Any:
        """VLLM's request for a context; not told to it yet, unless it was."""
        if context.request is not None:
            return context.request
        from vllm.sampling_params import SamplingParams as VllmSampling  # pyright: ignore[reportMissingImports]
        from vllm.v1.engine import EngineCoreRequest  # pyright: ignore[reportMissingImports]

        most = max(1, self._core.window - len(context.tokens))
        sampling = VllmSampling(
            temperature=0.0, max_tokens=most, ignore_eos=True, detokenize=False, extra_args={KEY: context}
        )
        asked = EngineCoreRequest(
            request_id=f"aios-{next(self._ids)}",
            prompt_token_ids=[*context.tokens],
            mm_features=None,
            sampling_params=sampling,
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=self._core.lora(context.lora),
            cache_salt=context.salt.hex() or None,
            data_parallel_rank=None,
        )
        context.request, _ = self._core.core.preprocess_add_request(asked)
        return context.request

    def _enter(self, context: VllmContext) -> str:
        """Tell vLLM of a context's request; gives its id."""
        request = self._request(context)
        if not context.entered:
            if context.stored is not None:
                self._core.scheduler_side.stored[request.request_id] = (context.stored, context.computed)
                self._core.scheduler.restored.add(request.request_id)
            self._core.core.add_request(request)
            context.entered = True
        return request.request_id

    def _end(self, context: VllmContext) -> None:
        """Have vLLM forget a context's request."""
        if context.entered:
            self._core.core.abort_requests([context.request.request_id])
            self._core.scheduler_side.stored.pop(context.request.request_id, None)
            self._core.scheduler.restored.discard(context.request.request_id)
        context.request, context.entered = None, False

    def _blocks_of(self, context: VllmContext) -> list[int]:
        blocks = self._core.manager.get_block_ids(context.request.request_id)[0]
        return list(blocks[: self._rounded(context.computed) // self._core.block_size])

    def _rounded(self, n_tokens: int) -> int:
        size = self._core.block_size
        return -(-n_tokens // size) * size

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        strange = next((token for token in tokens if not 0 <= token < self._core.vocab), None)
        if strange is not None:
            raise ValueError(f"token {strange} is not of this model")

    @staticmethod
    def _own(context: Context) -> VllmContext:
        if not isinstance(context, VllmContext) or context.closed:
            raise ValueError("the context was released, or is another engine's")
        return context

    def _lacks(self, what: str) -> NoReturn:
        raise Unsupported(f"vLLM in process has no {what}", fix="serve it by the torch engine: aios serve PATH")
