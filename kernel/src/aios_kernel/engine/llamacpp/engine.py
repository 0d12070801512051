"""The engine contract over llama.cpp: the kernel says who computes how many tokens in each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from aios_kernel.engine.llamacpp.context import LlamaContext
from aios_kernel.engine.llamacpp.embedding import LlamaEmbedder
from aios_kernel.engine.llamacpp.library import TESTED
from aios_kernel.engine.llamacpp.model import LlamaModel
from aios_kernel.engine.llamacpp.runner import LlamaRunner, Sizes
from aios_kernel.engine.llamacpp.sequences import Kept, Sequences
from aios_kernel.engine.llamacpp.snapshot import LlamaSnapshot, load
from aios_kernel.engine.llamacpp.work import SCORED, Part, Work, batches
from aios_kernel.engine.protocol import (
    Capabilities,
    Context,
    Grammar,
    KvExhausted,
    SamplingParams,
    Snapshot,
    StepOutput,
)
from aios_kernel.engine.torch.masks import Lookahead, Masks
from aios_kernel.engine.torch.sampler import Choice, choose
from aios_kernel.engine.torch.scores import log_probabilities, scores
from aios_kernel.errors import Busy, EngineError, SnapshotError

OFFERED = Capabilities(
    step_control=True,
    fork=True,
    snapshot=True,
    snapshot_files=True,
    grammar=True,
    logprobs=True,
    prompt_logprobs=True,
    lora=True,
    embed=True,
)
STEP_TOKENS = 2048
SEQUENCES = 256
"""Contexts and kept prefixes, of which llama.cpp has no more."""


class LlamaEngine:
    """See `aios_kernel.engine.protocol.Engine`.

    Args:
        model: the weights; closed with the engine.
        kv_tokens: size of the KV pool.
        kind: of keys and values, a number of `GGML_TYPE_...`.
        threads: 0: llama.cpp's choice.
    """

    name = "llamacpp"

    def __init__(self, model: LlamaModel, *, kv_tokens: int, kind: int, threads: int = 0) -> None:
        sequences = min(SEQUENCES, int(model.api.llama_max_parallel_sequences()))
        sizes = Sizes(kv_tokens, sequences, STEP_TOKENS, threads, kind)
        self.model = model
        self.fingerprint = f"llamacpp:{TESTED}:{kind}:{model.digest}"
        self._runner = LlamaRunner(model, sizes)
        self._sequences = Sequences(self._runner, kv_tokens, sequences)
        self._embedder = LlamaEmbedder(model, sizes)
        self._open: set[LlamaContext] = set()
        self._lookahead = Lookahead(model.vocab, on_host=True)
        self.capabilities = dataclasses.replace(
            OFFERED,
            block_size=1,
            kv_tokens=kv_tokens,
            max_batch=sequences // 2,
            max_step_tokens=STEP_TOKENS,
            vocab=model.vocab,
        )

    def load_lora(self, name: str, source: str) -> None:
        """Load an adapter; contexts opened with its name use it. Raises as `LlamaModel.load_lora`."""
        self.model.load_lora(name, Path(source).expanduser())

    def unload_lora(self, name: str) -> None:
        """Forget an adapter. Raises UnknownModel, or Busy while contexts use it."""
        if any(context.lora == name for context in self._open):
            raise Busy(f'the LoRA adapter "{name}" is in use', fix="end the calls that use it", retry_after_s=1.0)
        self._sequences.forget(name)
        self._runner.adapt(None)
        self.model.unload_lora(name)

    def prefetch_lora(self, name: str) -> None:
        """Nothing to do: what is loaded is there. Raises UnknownModel."""
        self.model.lora(name)

    def loras(self) -> Mapping[str, int]:
        """The adapters by name; they take no room in the KV pool."""
        return dict.fromkeys(self.model.loras, 0)

    def open(
        self,
        tokens: Sequence[int],
        *,
        sampling: SamplingParams,
        grammar: Grammar | None = None,
        lora: str | None = None,
        salt: bytes = b"",
    ) -> LlamaContext:
        """See `Engine.open`. Raises ValueError for tokens that the model lacks, UnknownModel for such an adapter."""
        if not tokens:
            raise ValueError("a context needs at least one token")
        self._check_tokens(tokens)
        self.model.lora(lora)
        context = LlamaContext.of(tokens, sampling, grammar, lora, salt)
        if sampling.prompt_logprobs is None:
            self._sequences.attach(context)
        self._open.add(context)
        return context

    def append(self, context: LlamaContext, tokens: Sequence[int]) -> None:
        """See `Engine.append`."""
        self._check_tokens(tokens)
        _own(context).tokens.extend(tokens)

    def step(self, plan: Sequence[tuple[LlamaContext, int]]) -> list[StepOutput]:
        """See `Engine.step`. Contexts of different adapters are computed one adapter after the other."""
        works = _works(plan)
        needed = sum(work.n_tokens for work in works)
        if needed > self._sequences.free:
            raise KvExhausted(f"{needed} cells needed, {self._sequences.free} available")
        self._sequences.enter([work.context for work in works])
        for work in works:
            self._sequences.extend(work.context, work.n_tokens)
        emitting = [work for work in works if work.emits and work.n_tokens]
        self._lookahead.begin(cast("Any", [work.context for work in emitting]))
        try:
            self._compute(works)
        finally:
            masks = self._lookahead.take()
        choices = self._choose([work for work in emitting if work.error is None], masks)
        return [self._settle(work, choices.get(id(work.context))) for work in works]

    def fork(
        self,
        context: LlamaContext,
        *,
        at: int | None = None,
        sampling: SamplingParams | None = None,
        grammar: Grammar | None = None,
    ) -> LlamaContext:
        """See `Engine.fork`. Cells are shared; nothing is copied, and what follows takes cells of its own."""
        own = _own(context)
        if at is None:
            twin, shared = own.twin(), own.computed
        elif not 0 < at <= len(own.tokens):
            raise ValueError(f"a context of {len(own.tokens)} tokens cannot be forked at {at}")
        else:
            twin = LlamaContext.of(own.tokens[:at], sampling or own.sampling, grammar, own.lora, own.salt)
            shared = twin.cached = min(own.computed, at - 1)
            twin.poisoned = own.poisoned
        self._sequences.share(own, twin, shared)
        self._open.add(twin)
        return twin

    def snapshot(self, context: LlamaContext) -> LlamaSnapshot:
        """See `Engine.snapshot`."""
        own = _own(context)
        state, data = own.twin(), np.empty(0, dtype=np.uint8)
        try:
            if own.computed:
                data = self._runner.read(own.sequence)
        except (MemoryError, EngineError) as error:
            raise SnapshotError(f"the context could not be copied to host memory: {error}") from error
        return LlamaSnapshot(self.fingerprint, state, data, self._leave(own))

    def restore(self, snapshot: Snapshot) -> LlamaContext:
        """See `Engine.restore`."""
        if not isinstance(snapshot, LlamaSnapshot) or snapshot.fingerprint != self.fingerprint:
            raise SnapshotError(f"a snapshot of {snapshot.fingerprint} cannot continue on {self.fingerprint}")
        context = snapshot.state.twin()
        self.model.lora(context.lora)
        computed, context.computed = context.computed, 0
        if computed and not self._sequences.reclaim(snapshot.kept, context):
            self._bring(context, computed, snapshot)
        self._open.add(context)
        return context

    def load_snapshot(self, path: Path, grammar: Callable[[str], Grammar] | None = None) -> LlamaSnapshot:
        """See `SnapshotFiles.load_snapshot`."""
        return load(path, grammar)

    def release(self, context: LlamaContext) -> None:
        """See `Engine.release`."""
        if not context.closed:
            self._leave(context)

    def embed(self, texts: Sequence[Sequence[int]]) -> Iterator[list[list[float]]]:
        """See `Engine.embed`. Mean-pooled last hidden states. Raises ValueError as `open` does."""
        for tokens in texts:
            self._check_tokens(tokens)
            if not tokens:
                raise ValueError("a text needs at least one token")
        return self._embedder.run(texts)

    def kv_free(self) -> int:
        """See `Engine.kv_free`."""
        return self._sequences.free

    def kv_need(self, context: LlamaContext, n_tokens: int) -> int:
        """See `Engine.kv_need`: a cell a token."""
        return n_tokens

    def close(self) -> None:
        """Free KV and weights; contexts that are still open are void."""
        self._lookahead.close()
        self._embedder.close()
        self._runner.close()
        self.model.close()

    def _bring(self, context: LlamaContext, computed: int, snapshot: LlamaSnapshot) -> None:
        """Copy the KV of a snapshot back."""
        if computed > self._sequences.free:
            raise KvExhausted(f"{computed} cells needed, {self._sequences.free} available")
        self._sequences.enter([context])
        self._sequences.extend(context, computed)
        try:
            self._runner.write(context.sequence, snapshot.data)
        except EngineError as error:
            context.poisoned = True  # of its cells nothing is kept
            self._leave(context)
            raise SnapshotError(f"the context could not be brought back: {error.message}") from error
        context.computed = computed

    def _leave(self, context: LlamaContext) -> Kept | None:
        context.closed = True
        self._open.discard(context)
        return self._sequences.leave(context)

    def _compute(self, works: Sequence[Work]) -> None:
        for batch in batches(works, STEP_TOKENS):
            batch = [part for part in batch if part[0].error is None]
            if not batch:
                continue
            try:
                self._compute_one(batch)
            except EngineError as error:
                for work, _, _ in batch:
                    self._runner.cut(work.context.sequence, work.context.computed)
                    work.error = error.message

    def _compute_one(self, batch: Sequence[Part]) -> None:
        self._runner.adapt(self.model.lora(batch[0][0].context.lora))
        runs = [work.run(begin, end) for work, begin, end in batch]
        rows = iter(self._runner.compute(runs))
        for (work, _, _), run in zip(batch, runs, strict=True):
            work.rows += [next(rows) for _ in run.wanted]

    def _choose(self, works: Sequence[Work], masks: Masks) -> dict[int, Choice]:
        """The next tokens, by the id of their contexts."""
        if not works:
            return {}
        logits = torch.from_numpy(np.stack([work.rows[-1] for work in works]))
        contexts = [work.context for work in works]
        # The sampler reads of a context what LlamaContext has, but is typed for the torch engine's own.
        chosen = choose(logits, cast("Any", contexts), masks)
        return {id(context): choice for context, choice in zip(contexts, chosen, strict=True)}

    def _settle(self, work: Work, choice: Choice | None) -> StepOutput:
        context = work.context
        if work.error is not None:
            self._sequences.shrink(context)
            return StepOutput(context, 0, error=work.error)
        prompt = _scores(work)
        context.computed += work.n_tokens
        if choice is None:
            return StepOutput(context, work.n_tokens, prompt=prompt)
        if choice.error is not None:
            context.poisoned = not choice.finite
            return StepOutput(context, work.n_tokens, error=choice.error)
        context.tokens.append(choice.token)
        return StepOutput(
            context,
            work.n_tokens,
            token=choice.token,
            argmax=choice.argmax,
            margin=choice.margin,
            logprob=choice.logprob,
            top=choice.top,
            prompt=prompt,
        )

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        strange = next((token for token in tokens if not 0 <= token < self.model.vocab), None)
        if strange is not None:
            raise ValueError(f"token {strange} is not of this model")


def _works(plan: Sequence[tuple[LlamaContext, int]]) -> list[Work]:
    if len({id(context) for context, _ in plan}) != len(plan):
        raise ValueError("a plan names a context twice")
    works: list[Work] = []
    for context, n_tokens in plan:
        own = _own(context)
        if n_tokens < 1:
            raise ValueError("a plan asks for less than one token of a context")
        works.append(Work(own, min(n_tokens, own.pending, SCORED if own.wants_prompt else own.pending)))
    return works


def _scores(work: Work) -> list[Any]:
    """Of the prompt's tokens that stand behind those just computed."""
    if not work.scored:
        return []
    context, first = work.context, work.context.computed + 1
    logprobs = log_probabilities(torch.from_numpy(np.stack(work.rows[: work.scored])))
    top = context.sampling.prompt_logprobs or 0
    return scores(logprobs, context.tokens[first : first + work.scored], [top] * work.scored)


def _own(context: Context) -> LlamaContext:
    if not isinstance(context, LlamaContext) or context.closed:
        raise ValueError("the context was released, or is another engine's")
    return context
