"""The default engine: any causal model of transformers over paged KV, step by step under the kernel's control."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from aios_kernel.engine.protocol import (
    Capabilities,
    Context,
    Grammar,
    Hold,
    KvExhausted,
    SamplingParams,
    Snapshot,
    StepOutput,
)
from aios_kernel.engine.torch.batch import Work, pack
from aios_kernel.engine.torch.blocks import BlockPool
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.decoding import DecodingRows
from aios_kernel.engine.torch.dense import DenseCache
from aios_kernel.engine.torch.embedding import TextEmbedder
from aios_kernel.engine.torch.experts.loading import mixture_of
from aios_kernel.engine.torch.fingerprint import fingerprint
from aios_kernel.engine.torch.holds import Hold as BlockHold
from aios_kernel.engine.torch.kv import KvMemory
from aios_kernel.engine.torch.launched import Launched, Underway, both, nothing
from aios_kernel.engine.torch.lora.adapters import Adapters
from aios_kernel.engine.torch.lora.shelf import Shelf
from aios_kernel.engine.torch.masks import Lookahead
from aios_kernel.engine.torch.native.memory import NativeKvMemory, served, stored
from aios_kernel.engine.torch.paged import choices as paged_choices
from aios_kernel.engine.torch.paged import memory as paged_memory
from aios_kernel.engine.torch.paged.ahead import RunAhead
from aios_kernel.engine.torch.paged.forward import PagedForward
from aios_kernel.engine.torch.prefix import BLOCK, tail_key
from aios_kernel.engine.torch.prompt_scores import most_at_once, score_prompts
from aios_kernel.engine.torch.reservation import (
    Reservation,
    attach_cached,
    blocks_needed,
    blocks_needed_to_decode,
    cached_length,
)
from aios_kernel.engine.torch.runner import ModelRunner
from aios_kernel.engine.torch.sampler import choose, first_tokens
from aios_kernel.engine.torch.sizing import pool_blocks
from aios_kernel.engine.torch.snapshot import TorchSnapshot
from aios_kernel.engine.torch.swap import Swapper
from aios_kernel.errors import AiosError, ConfigError, SnapshotError
from aios_kernel.syscalls import ExpertStatus

_log = logging.getLogger(__name__)
_HOST = torch.device("cpu")


class TorchEngine:
    """See `aios_kernel.engine.protocol.Engine`.

    Args:
        model: a loaded `*ForCausalLM` of transformers; the engine takes it over.
        name: what the engine calls itself.
        kv_tokens: size of the KV pool; None takes what the free memory allows (`sizing`).
        max_batch: contexts in one step.
        max_step_tokens: tokens in one step.
        compile: whether to compile the model, see `ModelRunner.compile`.
        native: whether to use compiled attention and products where they can be had (`native`).
        paged: whether to use the kernels of a GPU; None: where there is one.

    Raises:
        Unsupported: the model's architecture cannot run on paged attention.
        ConfigError: the pool does not fit into memory.
    """

    def __init__(  # noqa: PLR0913 - all but the model have a default
        self,
        model: Any,
        *,
        name: str = "torch",
        kv_tokens: int | None = None,
        max_batch: int = 256,
        max_step_tokens: int = 2048,
        compile: bool = False,
        native: bool = True,
        paged: bool | None = None,
    ) -> None:
        self.name = name
        digest = fingerprint(model)
        self._experts = mixture_of(model)
        self._runner = ModelRunner(model, native=native)
        runner = self._runner
        if compile:
            runner.compile()
        paged = _paged(runner.device, paged)
        native = native and not paged and served(runner.dtype, runner.device)
        # The blocks have another order inside, or sums are taken in another: snapshots of one are nothing to the other.
        self.fingerprint = f"{digest}:native" if native else f"{digest}:paged" if paged else digest
        shapes = stored(runner.shapes) if native else runner.shapes
        promised = 0 if self._experts is None else self._experts.unused_bytes
        n_blocks = pool_blocks(shapes, runner.dtype, runner.device, kv_tokens, promised=promised)
        self._memory = _memory(runner, n_blocks, native=native, paged=paged)
        self._paged = None
        if isinstance(self._memory, paged_memory.PagedKvMemory):
            runner.hand_over_a_mask()
            self._paged = PagedForward.on(runner, self._memory)
        self._pool = BlockPool(n_blocks)
        self._ahead = RunAhead(self._pool, self._paged) if self._paged is not None else None
        self._swapper = Swapper(self._pool, self._memory, self.fingerprint)
        self._adapters = Adapters(runner, Shelf(self._pool, self._memory, paged=runner.device.type != "cpu"))
        self._dense = (
            None if native or paged else DenseCache(sum(shape.width for shape in shapes) * runner.dtype.itemsize)
        )
        self._decoding = DecodingRows()
        self._checked: list[tuple[TorchContext, int]] = []
        """The last plan, if it was of one token each: most often it is asked for again."""
        self._lookahead = Lookahead(runner.vocab, on_host=runner.device.type == "cpu")
        self._embedder = TextEmbedder(runner.model, runner.shapes, max_step_tokens)
        self.capabilities = Capabilities(
            step_control=True,
            fork=True,
            snapshot=True,
            snapshot_files=True,
            holds=True,
            grammar=True,
            logprobs=True,
            lora=True,
            embed=True,
            block_size=BLOCK,
            kv_tokens=self._pool.size * BLOCK,
            max_batch=max_batch,
            max_step_tokens=max_step_tokens,
            prompt_logprobs=True,
            vocab=runner.vocab,
            two_phase=self._paged is not None,
        )

    @property
    def compiled(self) -> bool:
        """Whether the model runs compiled."""
        return self._runner.compiled

    @property
    def recorded_graphs(self) -> int:
        """How many kinds of decode steps are recorded as CUDA graphs."""
        return self._paged.graphs.recorded if self._paged is not None and self._paged.graphs is not None else 0

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
        self._check_tokens(tokens)
        if not tokens:
            raise ValueError("a context needs at least one token")
        root, adapter = self._adapters.root(salt, lora), self._adapters.take(lora)
        context = TorchContext(tokens, sampling=sampling, grammar=grammar, root=root, lora=adapter)
        attach_cached(self._pool, context, len(context.tokens), {})
        return context

    def append(self, context: Context, tokens: Sequence[int]) -> None:
        """See `Engine.append`. Raises ValueError for a token that the model does not know."""
        self._check_tokens(tokens)
        self._touched(context).tokens.extend(tokens)

    def step(self, plan: Sequence[tuple[Context, int]]) -> list[StepOutput]:
        """See `Engine.step`. Raises ValueError for a plan that names a context twice or an impossible count."""
        return self.collect(self.launch(plan))

    def launch(self, plan: Sequence[tuple[Context, int]]) -> Launched:
        """See `TwoPhase.launch`; raises as `step`. On the CPU the forward has run when this returns."""
        entries = self._check_plan(plan)
        try:
            return self._begin(entries)
        except KvExhausted:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a forward raises ends only the contexts concerned
            return Launched(entries, error=error)

    def collect(self, launched: Launched) -> list[StepOutput]:
        """See `TwoPhase.collect`."""
        entries, error = launched.entries, launched.error
        if error is None:
            try:
                return self._end(launched)
            except Exception as failure:  # noqa: BLE001 - as above; what a device finds wrong it tells late
                error = failure
        _log.error("a step of %d contexts failed", len(entries), exc_info=error)
        if len(entries) == 1:
            return [_failed(entries[0][0], error)]
        return [self._run_alone(context, n_tokens) for context, n_tokens in entries]

    def warm_up(self) -> None:
        """Do now what the first steps would have to do: on a GPU, record the graphs of decode steps."""
        if self._paged is not None:
            self._paged.warm_up(self.capabilities.max_batch)

    def fork(
        self,
        context: Context,
        *,
        at: int | None = None,
        sampling: SamplingParams | None = None,
        grammar: Grammar | None = None,
    ) -> Context:
        """See `Engine.fork`. A whole twin has the sampler's state too: it differs once other tokens are appended."""
        original = self._arrived(self._touched(context))
        if at is None:
            twin = original.twin()
        elif 0 < at <= len(original.tokens):
            twin = original.beginning(at)
            twin.sample_by(sampling or original.sampling, grammar)
        else:
            raise ValueError(f"a context of {len(original.tokens)} tokens cannot be forked at {at}")
        self._pool.share(twin.table)
        self._adapters.share(twin)
        return twin

    def snapshot(self, context: Context) -> Snapshot:
        """See `Engine.snapshot`. The copy is made beside the next steps; a block is not reused before it is made."""
        original = self._arrived(self._touched(context))
        result = self._swapper.take(original)
        self.release(original)
        return result

    def restore(self, snapshot: Snapshot) -> Context:
        """See `Engine.restore`. The KV comes back beside other contexts' steps; the context's own waits for it."""
        if not isinstance(snapshot, TorchSnapshot):
            raise SnapshotError(f"the snapshot is of {snapshot.fingerprint}, this engine is {self.fingerprint}")
        adapter = self._adapters.take_again(snapshot.state)
        try:
            context = self._swapper.bring(snapshot)
        except BaseException:
            if adapter is not None:
                self._adapters.shelf.give_back(adapter)
            raise
        context.lora = adapter
        if context.arrival is not None and context.arrival.done():
            self._arrived(context)
        return context

    def load_snapshot(self, path: Path, grammar: Callable[[str], Grammar] | None = None) -> Snapshot:
        """See `SnapshotFiles.load_snapshot`."""
        return self._swapper.load(path, grammar, self._adapters.again)

    def hold(self, context: Context, *, priority: int = 0, ttl_s: float | None = None, pinned: bool = False) -> Hold:
        """See `PrefixHolds.hold`."""
        own = self._arrived(self._touched(context))
        self._publish_tail(own)
        # Another context may have published the same content first: its blocks are those that are found.
        found = [self._pool.find(key) for key in [*own.keys[: own.published], *_tail_keys(own)]]
        blocks = cast("list[int]", [*itertools.takewhile(lambda block: block is not None, found)])
        n_tokens = min(len(blocks) * BLOCK, own.computed)
        return self._pool.hold(blocks, priority=priority, ttl_s=ttl_s, pinned=pinned, n_tokens=n_tokens)

    def drop(self, hold: Hold) -> None:
        """See `PrefixHolds.drop`."""
        self._memory.clear(self._pool.drop(cast("BlockHold", hold)))

    def match(self, tokens: Sequence[int], *, salt: bytes = b"", lora: str | None = None) -> int:
        """See `PrefixHolds.match`."""
        return cached_length(self._pool, self._adapters.root(salt, lora), tokens)

    def load_lora(self, name: str, source: str) -> None:
        """See `LoraAdapters.load_lora`."""
        self._adapters.load(name, source)

    def unload_lora(self, name: str) -> None:
        """See `LoraAdapters.unload_lora`."""
        self._adapters.shelf.remove(name)

    def prefetch_lora(self, name: str) -> None:
        """See `LoraAdapters.prefetch_lora`."""
        self._adapters.shelf.prefetch(name)

    def loras(self) -> Mapping[str, int]:
        """See `LoraAdapters.loras`."""
        return self._adapters.shelf.tokens()

    def release(self, context: Context) -> None:
        """See `Engine.release`. A context that is gone already is left alone."""
        own = cast("TorchContext", context)
        if own.closed:
            return
        self._touched(own)
        if own.arrival is not None:
            own.arrival.exception()  # its blocks are written to until then
        self._publish_tail(own)
        own.closed = True
        blocks = own.cut_blocks(0)
        if own.poisoned:
            for block in blocks:
                self._pool.forget(block)
        self._memory.clear(self._pool.release(blocks))
        if own.lora is not None:
            self._adapters.shelf.give_back(own.lora)

    def embed(self, texts: Sequence[Sequence[int]]) -> Iterator[list[list[float]]]:
        """See `Engine.embed`. Mean-pooled last hidden states. Raises ValueError as `open` does."""
        for tokens in texts:
            self._check_tokens(tokens)
            if not tokens:
                raise ValueError("a text needs at least one token")
        return self._embedder.run(texts)

    def kv_free(self) -> int:
        """See `Engine.kv_free`."""
        return self._pool.available * BLOCK

    def kv_need(self, context: Context, n_tokens: int) -> int:
        """See `Engine.kv_need`."""
        return blocks_needed(self._pool, self._own(context), n_tokens) * BLOCK

    def expert_status(self) -> ExpertStatus | None:
        """See `ExpertCaching`."""
        return None if self._experts is None else self._experts.status()

    def close(self) -> None:
        """Drop the model and the pool; contexts that are still open are void."""
        self._pool = BlockPool(2)
        self._memory = KvMemory([], 2, dtype=self._runner.dtype, device=self._runner.device)
        self._forget_copies()
        self._swapper.close()
        self._lookahead.close()
        if self._experts is not None:
            self._experts.close()
        del self._runner, self._embedder, self._adapters, self._paged, self._ahead, self._swapper

    def _begin(self, entries: Sequence[tuple[TorchContext, int]]) -> Launched:
        if self._ahead is None:
            return self._begin_now(entries)
        covered = self._ahead.covered(entries)
        if not covered:
            self._ahead.forget()
            launched = self._begin_now(entries)
        else:
            launched = self._begin_rest(entries, covered, self._ahead)
        self._run_ahead(launched, self._ahead)
        return launched

    def _run_ahead(self, launched: Launched, ahead: RunAhead) -> None:
        """Begin the step behind a step, if that can be done; this one is not concerned if it fails."""
        if launched.underway.tokens is None:
            return
        try:
            with torch.inference_mode():
                ahead.follow(launched.works, launched.underway.tokens)
        except Exception:  # noqa: BLE001 - the step will run when it is asked for, and fail there if it must
            _log.exception("no step could be begun ahead")
            ahead.forget()

    def _begin_rest(
        self, entries: Sequence[tuple[TorchContext, int]], covered: Sequence[TorchContext], ahead: RunAhead
    ) -> Launched:
        """A step of which some or all is under way."""
        known = {id(context) for context in covered}
        rest = [entry for entry in entries if id(entry[0]) not in known]
        for context, _ in rest:
            ahead.leave(context)
        others = self._begin_now(rest) if rest else Launched(())
        taken = ahead.take(covered)
        if not rest:
            return Launched(entries, taken.works, taken.undo, Underway(taken.finish, taken.tokens))
        work_of = {id(work.context): work for work in (*others.works, *taken.works)}
        return Launched(
            entries,
            [work_of[id(context)] for context, _ in entries],
            both(others.undo, taken.undo),
            Underway(both(others.underway.finish, taken.finish)),
        )

    def _begin_now(self, entries: Sequence[tuple[TorchContext, int]]) -> Launched:
        decoding: list[TorchContext] = []
        for context, _ in entries:
            if context.arrival is not None:
                self._arrived(context)
            if len(context.tokens) - context.computed == 1:
                decoding.append(context)
        reservation = Reservation(self._pool, self._memory)
        self._check_room(entries, decoding)
        try:
            works = self._reserve(entries, decoding, reservation)
            with torch.inference_mode():
                underway = self._compute([work for work in works if work.n_tokens])
        except BaseException:
            self._forget_copies()
            reservation.undo()
            raise
        return Launched(entries, works, reservation.undo, underway)

    def _end(self, launched: Launched) -> list[StepOutput]:
        if launched.underway.finish is not nothing:
            try:
                with torch.inference_mode():
                    launched.underway.finish()
            except BaseException:
                self._forget_copies()
                launched.undo()
                raise
        return self._settle(launched.works)

    def _check_room(self, entries: Sequence[tuple[TorchContext, int]], decoding: Sequence[TorchContext]) -> None:
        """Raise KvExhausted unless the pool has what the step takes at most."""
        if len(entries) == len(decoding) <= self._pool.available:
            return  # a token takes no more than a block
        needed = blocks_needed_to_decode(self._pool, decoding)
        if len(decoding) < len(entries):
            needed += sum(blocks_needed(self._pool, context, n) for context, n in entries if context.pending != 1)
        if needed > self._pool.available:
            raise KvExhausted(f"{needed} blocks needed, {self._pool.available} available")

    def _reserve(
        self,
        entries: Sequence[tuple[TorchContext, int]],
        decoding: Sequence[TorchContext],
        reservation: Reservation,
    ) -> list[Work]:
        """Make room for what each context computes; give what is left of it to compute."""
        reservation.take_decoding(decoding)
        if len(decoding) == len(entries):
            return [Work(context, 1) for context in decoding]
        return [Work(c, 1 if c.pending == 1 else reservation.take(c, n_tokens)) for c, n_tokens in entries]

    def _touched(self, context: Context) -> TorchContext:
        """One of our contexts, which is not only stepped: nothing is computed ahead for it."""
        own = self._own(context)
        if self._ahead is not None:
            self._ahead.leave(own)
        return own

    def _forget_copies(self) -> None:
        self._decoding.forget()
        self._checked = []
        if self._ahead is not None:
            self._ahead.forget()
        if self._dense is not None:
            self._dense.clear()

    def _compute(self, works: Sequence[Work]) -> Underway:
        """Run the forward; choices and scores are with the works once it is finished."""
        if not works:
            return Underway()
        if self._paged is not None:
            return self._compute_beside(works, self._paged)
        batch = pack(works, self._dense, self._runner.device, self._decoding)
        emitting = [work.context for work in batch.emitting]
        plain = not batch.scoring and all(context.plain for context in emitting)
        if not plain:
            self._lookahead.begin(emitting)
        try:
            logits = self._runner.forward(
                batch.ids, batch.positions, batch.layout, self._memory, batch.rows, self._adapters.table(batch.works)
            )
        finally:
            masks = self._lookahead.take()
        n = len(emitting)
        tokens = first_tokens(logits) if plain and n else None
        if tokens is not None:  # by far the most frequent kind of step: nothing is made that nobody asks for
            for work, token in zip(batch.emitting, tokens, strict=True):
                work.token = token
        elif n:
            for work, choice in zip(batch.emitting, choose(logits[:n], emitting, masks), strict=True):
                work.choice = choice
        if batch.scoring:
            score_prompts(logits[n:], batch.scoring)
        return Underway()

    def _compute_beside(self, works: Sequence[Work], forward: PagedForward) -> Underway:
        """The same on a device that works while the host goes on."""
        batch = pack(works, None, _HOST)
        emitting = [work.context for work in batch.emitting]
        self._lookahead.begin(emitting)
        try:
            adapters = self._adapters.table(batch.works)
            logits = forward(batch, sum(work.n_tokens == 1 for work in works), adapters)
        finally:
            masks = self._lookahead.take()
        n = len(emitting)
        choosing = paged_choices.begin(logits[:n], emitting, masks) if n else None

        def finish() -> None:
            if choosing is not None:
                for work, choice in zip(batch.emitting, paged_choices.finish(choosing), strict=True):
                    work.choice = choice
            if batch.scoring:
                score_prompts(logits[n:], batch.scoring)

        whole = choosing is not None and adapters is None and n == len(works)
        return Underway(finish, choosing.tokens if whole and choosing is not None else None)

    def _settle(self, works: Sequence[Work]) -> list[StepOutput]:
        return [self._settle_one(work) for work in works]

    def _settle_one(self, work: Work) -> StepOutput:
        """Make the step's result part of the context."""
        context, choice = work.context, work.choice
        start = context.computed
        context.computed = start + work.n_tokens
        if choice is not None and not choice.finite:
            context.poisoned = True
            for block in context.blocks[start // BLOCK :]:
                self._pool.withdraw(block)  # nobody is to copy what was just written
        if context.computed // BLOCK > context.published:
            self._publish(context)
        if work.n_tokens > 1:
            self._publish_tail(context)
        if work.token >= 0:
            context.emitted += 1
            context.tokens.append(work.token)
            return StepOutput(context, work.n_tokens, work.token, work.token)
        if choice is None:
            return StepOutput(context, work.n_tokens, prompt=work.scores)
        if choice.error is not None:
            return StepOutput(context, work.n_tokens, error=choice.error)
        context.tokens.append(choice.token)
        told = choice.token, choice.argmax, choice.margin, choice.logprob, choice.top
        return StepOutput(context, work.n_tokens, *told, work.scores)

    def _run_alone(self, context: TorchContext, n_tokens: int) -> StepOutput:
        """One context of a step that failed, to find out whether the fault is its own."""
        try:
            return self._end(self._begin_now([(context, n_tokens)]))[0]
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
            start = index * BLOCK
            parent, tokens = context.key_before(start), context.tokens[start : start + BLOCK]
            self._pool.publish(table[index], context.keys[index], parent, tokens)
        context.published = full

    def _publish_tail(self, context: TorchContext) -> None:
        """Offer the last block too, though it is filled in part: the next turn goes on behind its tokens."""
        full, used = divmod(context.computed, BLOCK)
        if used and full <= context.published and not context.poisoned and context.arrival is None:
            start = full * BLOCK
            parent, tokens = context.key_before(start), context.tokens[start : context.computed]
            self._pool.publish(int(context.table[full]), tail_key(parent, tokens), parent, tokens)

    def _arrived(self, context: TorchContext) -> TorchContext:
        """The context, once its KV is in the pool; what came back with it can be shared from then on."""
        if context.arrival is not None:
            context.arrival.result()
            context.arrival = None
            self._publish(context)
        return context

    def _check_plan(self, plan: Sequence[tuple[Context, int]]) -> list[tuple[TorchContext, int]]:
        if plan == self._checked and not any(context.closed for context, _ in self._checked):
            return self._checked
        if len({id(context) for context, _ in plan}) != len(plan):
            raise ValueError("a plan names a context twice")
        entries: list[tuple[TorchContext, int]] = []
        for context, n_tokens in plan:
            own = self._own(context)
            if n_tokens < 1:
                raise ValueError("a plan asks for less than one token of a context")
            entries.append((own, 1 if n_tokens == 1 else min(n_tokens, own.pending, most_at_once(own))))
        self._checked = entries if all(n_tokens == 1 for _, n_tokens in plan) else []
        return entries

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        vocab = self._runner.vocab
        if tokens and not 0 <= min(tokens) <= max(tokens) < vocab:
            raise ValueError(f"token {max(tokens) if max(tokens) >= vocab else min(tokens)} is not of this model")

    @staticmethod
    def _own(context: Context) -> TorchContext:
        if not isinstance(context, TorchContext) or context.closed:
            raise ValueError("the context was released, or is another engine's")
        return context


def _paged(device: torch.device, wanted: bool | None) -> bool:
    """Whether the kernels of a GPU run. Raises ConfigError when they were asked for and cannot."""
    if wanted is None:
        return device.type == "cuda" and paged_memory.served(device)
    if wanted and not paged_memory.served(device):
        raise ConfigError(
            "there is no Triton for this device", fix="pip install 'triton>=3.6,<4'; on the CPU set TRITON_INTERPRET=1"
        )
    return wanted


def _memory(runner: ModelRunner, n_blocks: int, *, native: bool, paged: bool) -> KvMemory:
    options: dict[str, Any] = {"dtype": runner.dtype, "device": runner.device}
    if paged:
        return paged_memory.PagedKvMemory(runner.shapes, n_blocks, heads=runner.heads, **options)
    return (NativeKvMemory if native else KvMemory)(runner.shapes, n_blocks, **options)


def _tail_keys(context: TorchContext) -> list[bytes]:
    """The content key of a last block that is filled in part, if there is one."""
    start = context.computed // BLOCK * BLOCK
    tokens = context.tokens[start : context.computed]
    return [tail_key(context.key_before(start), tokens)] if tokens else []


def _failed(context: TorchContext, error: Exception) -> StepOutput:
    failure = error if isinstance(error, AiosError) else None
    return StepOutput(context, 0, error=f"{type(error).__name__}: {error}", failure=failure)
