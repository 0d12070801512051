"""The default engine: any causal model of transformers over paged KV, step by step under the kernel's control."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch

from aios_kernel.engine.protocol import (
    Capabilities,
    Context,
    Grammar,
    KvExhausted,
    SamplingParams,
    Snapshot,
    StepOutput,
)
from aios_kernel.engine.torch.batch import Work, pack
from aios_kernel.engine.torch.blocks import BlockPool
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.dense import DenseCache
from aios_kernel.engine.torch.fingerprint import fingerprint
from aios_kernel.engine.torch.kv import KvMemory
from aios_kernel.engine.torch.prefix import BLOCK, root_key
from aios_kernel.engine.torch.reservation import Reservation, attach_cached, blocks_needed
from aios_kernel.engine.torch.runner import ModelRunner
from aios_kernel.engine.torch.sampler import Choice, choose
from aios_kernel.engine.torch.sizing import pool_blocks
from aios_kernel.engine.torch.snapshot import TorchSnapshot
from aios_kernel.errors import Unsupported

_log = logging.getLogger(__name__)


class TorchEngine:
    """See `aios_kernel.engine.protocol.Engine`.

    Args:
        model: a loaded `*ForCausalLM` of transformers; the engine takes it over.
        name: what the engine calls itself.
        kv_tokens: size of the KV pool; None takes what the free memory allows (`sizing`).
        max_batch: contexts in one step.
        max_step_tokens: tokens in one step.

    Raises:
        Unsupported: the model's architecture cannot run on paged attention.
        ConfigError: the pool does not fit into memory.
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str = "torch",
        kv_tokens: int | None = None,
        max_batch: int = 256,
        max_step_tokens: int = 2048,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint(model)
        self._runner = ModelRunner(model)
        runner = self._runner
        n_blocks = pool_blocks(runner.shapes, runner.dtype, runner.device, kv_tokens)
        self._memory = KvMemory(runner.shapes, n_blocks, dtype=runner.dtype, device=runner.device)
        self._pool = BlockPool(n_blocks)
        self._dense = DenseCache(sum(shape.width for shape in runner.shapes) * runner.dtype.itemsize)
        self.capabilities = Capabilities(
            step_control=True,
            fork=True,
            snapshot=True,
            grammar=True,
            logprobs=True,
            block_size=BLOCK,
            kv_tokens=self._pool.size * BLOCK,
            max_batch=max_batch,
            max_step_tokens=max_step_tokens,
        )

    @property
    def vocab(self) -> int:
        """Width of the logits; a grammar's mask must cover it."""
        return self._runner.vocab

    def open(
        self,
        tokens: Sequence[int],
        *,
        sampling: SamplingParams,
        grammar: Grammar | None = None,
        lora: str | None = None,
        salt: bytes = b"",
    ) -> Context:
        """See `Engine.open`. Raises ValueError without tokens or for a token that the model does not know."""
        if lora is not None:
            raise Unsupported(f"the torch engine serves no LoRA yet, and {lora!r} was asked for", fix="leave lora out")
        self._check_tokens(tokens)
        if not tokens:
            raise ValueError("a context needs at least one token")
        context = TorchContext(tokens, sampling=sampling, grammar=grammar, root=root_key(salt))
        attach_cached(self._pool, context, len(context.tokens), {})
        return context

    def append(self, context: Context, tokens: Sequence[int]) -> None:
        """See `Engine.append`. Raises ValueError for a token that the model does not know."""
        self._check_tokens(tokens)
        self._own(context).tokens.extend(tokens)

    def step(self, plan: Sequence[tuple[Context, int]]) -> list[StepOutput]:
        """See `Engine.step`. Raises ValueError for a plan that names a context twice or an impossible count."""
        entries = self._check_plan(plan)
        try:
            return self._run(entries)
        except KvExhausted:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a forward raises ends only the contexts concerned
            _log.exception("a step of %d contexts failed", len(entries))
            if len(entries) == 1:
                return [_failed(entries[0][0], error)]
            return [self._run_alone(context, n_tokens) for context, n_tokens in entries]

    def fork(self, context: Context) -> Context:
        """See `Engine.fork`. The twin has the sampler's state too: it differs once other tokens are appended."""
        original = self._own(context)
        for block in original.blocks:
            self._pool.retain(block)
        return original.twin()

    def snapshot(self, context: Context) -> Snapshot:
        """See `Engine.snapshot`."""
        original = self._own(context)
        blocks = original.blocks
        data = self._memory.read(blocks)
        state = original.twin()
        state.cut_blocks(0)
        result = TorchSnapshot(
            tokens=state.tokens,
            computed=state.computed,
            fingerprint=self.fingerprint,
            nbytes=sum(part.nbytes for part in data),
            state=state,
            blocks=[(block, self._pool.generation(block)) for block in blocks],
            data=data,
        )
        self.release(context)
        return result

    def restore(self, snapshot: Snapshot) -> Context:
        """See `Engine.restore`."""
        if not isinstance(snapshot, TorchSnapshot) or snapshot.fingerprint != self.fingerprint:
            raise ValueError(f"the snapshot is of {snapshot.fingerprint}, this engine is {self.fingerprint}")
        kept = self._reattach(snapshot)
        context = snapshot.state.twin()
        copied: list[int] = []
        for row, (block, _) in enumerate(snapshot.blocks):
            if row in kept:
                context.push_block(block)
            else:
                context.push_block(self._pool.allocate())
                copied.append(row)
        self._memory.write([int(context.table[row]) for row in copied], snapshot.data, copied)
        context.published = 0
        self._publish(context)
        return context

    def release(self, context: Context) -> None:
        """See `Engine.release`. A context that is gone already is left alone."""
        own = cast("TorchContext", context)
        if own.closed:
            return
        own.closed = True
        blocks = own.cut_blocks(0)
        if own.poisoned:
            for block in blocks:
                self._pool.forget(block)
        self._memory.clear(self._pool.release(blocks))

    def kv_free(self) -> int:
        """See `Engine.kv_free`."""
        return self._pool.available * BLOCK

    def kv_need(self, context: Context, n_tokens: int) -> int:
        """See `Engine.kv_need`."""
        return blocks_needed(self._pool, self._own(context), n_tokens) * BLOCK

    def close(self) -> None:
        """Drop the model and the pool; contexts that are still open are void."""
        self._pool = BlockPool(2)
        self._memory = KvMemory([], 2, dtype=self._runner.dtype, device=self._runner.device)
        self._dense.clear()
        del self._runner

    def _reattach(self, snapshot: TorchSnapshot) -> set[int]:
        """Retain the snapshot's blocks that are still in the pool; give their rows. Raises KvExhausted."""
        kept = {row for row, (block, generation) in enumerate(snapshot.blocks) if self._pool.holds(block, generation)}
        for row in kept:
            self._pool.retain(snapshot.blocks[row][0])
        needed = len(snapshot.blocks) - len(kept)
        if needed > self._pool.available:
            self._pool.release(snapshot.blocks[row][0] for row in sorted(kept, reverse=True))
            raise KvExhausted(f"{needed} blocks needed, {self._pool.available} available")
        return kept

    def _run(self, entries: Sequence[tuple[TorchContext, int]]) -> list[StepOutput]:
        needed = sum(blocks_needed(self._pool, context, n_tokens) for context, n_tokens in entries)
        if needed > self._pool.available:
            raise KvExhausted(f"{needed} blocks needed, {self._pool.available} available")
        reservation = Reservation(self._pool, self._memory)
        try:
            works = [Work(context, reservation.take(context, n_tokens)) for context, n_tokens in entries]
            with torch.inference_mode():
                choices = self._compute([work for work in works if work.n_tokens])
        except BaseException:
            self._dense.clear()
            reservation.undo()
            raise
        return [self._settle(work, choices.get(id(work))) for work in works]

    def _compute(self, works: Sequence[Work]) -> dict[int, Choice]:
        """Run the forward; give the choices of the works that emit, by the work's identity."""
        if not works:
            return {}
        batch = pack(works, self._dense, self._runner.device)
        logits = self._runner.forward(batch.ids, batch.positions, batch.layout, self._memory, batch.rows)
        if not batch.emitting:
            return {}
        choices = choose(logits, [work.context for work in batch.emitting])
        return {id(work): choice for work, choice in zip(batch.emitting, choices, strict=True)}

    def _settle(self, work: Work, choice: Choice | None) -> StepOutput:
        """Make the step's result part of the context."""
        context = work.context
        context.computed = work.length
        if choice is None:
            self._publish(context)
            return StepOutput(context, work.n_tokens)
        context.poisoned = context.poisoned or not choice.finite
        self._publish(context)
        if choice.error is not None:
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
        )

    def _run_alone(self, context: TorchContext, n_tokens: int) -> StepOutput:
        """One context of a step that failed, to find out whether the fault is its own."""
        try:
            return self._run([(context, n_tokens)])[0]
        except Exception as error:  # noqa: BLE001 - whatever a forward raises ends its own context only
            return _failed(context, error)

    def _publish(self, context: TorchContext) -> None:
        """Offer full blocks to the prefix cache, generated ones too: the next turn's prompt contains them."""
        full = context.computed // BLOCK
        if full <= context.published or context.poisoned:
            return
        context.extend_keys()
        table = context.blocks
        for index in range(context.published, full):
            self._pool.publish(table[index], context.keys[index])
        context.published = full

    def _check_plan(self, plan: Sequence[tuple[Context, int]]) -> list[tuple[TorchContext, int]]:
        entries = [(self._own(context), n_tokens) for context, n_tokens in plan]
        if len({id(context) for context, _ in entries}) != len(entries):
            raise ValueError("a plan names a context twice")
        if any(n_tokens < 1 for _, n_tokens in entries):
            raise ValueError("a plan asks for less than one token of a context")
        return [(context, min(n_tokens, context.pending)) for context, n_tokens in entries]

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        vocab = self._runner.vocab
        if tokens and not 0 <= min(tokens) <= max(tokens) < vocab:
            raise ValueError(f"token {max(tokens) if max(tokens) >= vocab else min(tokens)} is not of this model")

    @staticmethod
    def _own(context: Context) -> TorchContext:
        if not isinstance(context, TorchContext) or context.closed:
            raise ValueError("the context was released, or is another engine's")
        return context


def _failed(context: TorchContext, error: Exception) -> StepOutput:
    return StepOutput(context, 0, error=f"{type(error).__name__}: {error}")
