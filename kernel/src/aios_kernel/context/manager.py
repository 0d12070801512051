"""Residency of contexts: queued (a prompt only), resident (KV in the pool), swapped (in host memory or on disk)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, cast

from aios_kernel.chat.generation import Generation, Order
from aios_kernel.context.held import Held
from aios_kernel.context.history import Conversations
from aios_kernel.context.parking import Parking
from aios_kernel.context.residue import Residue
from aios_kernel.context.space import SwapSpace
from aios_kernel.context.swap import SwapTiers
from aios_kernel.engine.protocol import Caller, Context, Engine, ForCallers, Grammar, LoraAdapters
from aios_kernel.errors import AiosError, OutOfMemory, UnknownModel

__all__ = ["ContextManager", "Held"]


class ContextManager:
    """Moves contexts between the places. Driven by the dispatcher's thread; KvExhausted passes through unchanged.

    Args:
        engine: runs the contexts.
        load_grammar: the codec's.
        space: budgets of the tiers below the pool.

    Attributes:
        snapshots: how often a context was swapped out.
        tokens_diverged: KV of earlier turns that the next turn's prompt did not match (`Conversations`).
        tiers: where the snapshots are.
        parking: the contexts of calls that have ended, kept for their programs' next ones.
    """

    def __init__(
        self, engine: Engine[Any, Any], load_grammar: Callable[[str], Grammar], space: SwapSpace | None = None
    ) -> None:
        self._engine = engine
        self._conversations = Conversations()
        self._residue = Residue(engine)
        self.tiers = SwapTiers(engine, load_grammar, space or SwapSpace())
        self.parking = Parking(engine, self.tiers, self._residue)
        self.snapshots = 0
        self.tokens_diverged = 0

    @property
    def can_swap(self) -> bool:
        """Whether a context can be swapped out now."""
        return self._engine.capabilities.snapshot and self.tiers.has_room

    @property
    def can_fork(self) -> bool:
        """Whether further answers to a prompt are forked from the first."""
        return self._engine.capabilities.fork

    def expect(self, order: Order) -> None:
        """A call is queued: its adapter comes into the pool ahead of it, while others still compute."""
        if order.lora is not None:
            with contextlib.suppress(UnknownModel):  # it has just been unloaded: opening the context will say so
                cast("LoraAdapters", self._engine).prefetch_lora(order.lora)

    def admit(self, held: Held) -> bool:
        """Give a queued generation a context: a fork of another answer to its prompt, or its cached prefix."""
        order = held.generation.order
        other = self._other(held)
        if other is not None:
            place = len(order.prompt)
            context = self._engine.fork(other, at=place, sampling=order.sampling, grammar=order.grammar)
        else:
            context = self.parking.open(order, lambda: self._open(order))
        held.context = context
        held.generation.cached = context.cached
        if held.generation.index == 0:  # once for all answers to one prompt
            diverged = self._conversations.divergence(order.program, order.history, order.prompt)
            held.generation.diverged = diverged
            self.tokens_diverged += diverged
        return True

    def _other(self, held: Held) -> Context | None:
        """The context of another answer to the same prompt that is in the pool."""
        if held.generation.order.sampling.prompt_logprobs is not None or not self.can_fork:
            return None  # as for a context that takes nothing from the cache
        contexts = [kin.context for kin in held.kin if kin.context is not None]
        return max(contexts, key=lambda context: context.computed, default=None)

    def _open(self, order: Order) -> Context:
        if self._engine.capabilities.callers:
            family = order.root or order.program
            caller = Caller(order.program, family, order.agent, order.priority, order.max_tokens)
            engine = cast("ForCallers", self._engine)
            return engine.open_for(
                caller, order.prompt, sampling=order.sampling, grammar=order.grammar, lora=order.lora, salt=order.salt
            )
        return self._engine.open(
            order.prompt, sampling=order.sampling, grammar=order.grammar, lora=order.lora, salt=order.salt
        )

    def swap_out(self, held: Held) -> None:
        """Snapshot a resident context to host memory and free its blocks. Raises OutOfMemory when that is full."""
        assert held.context is not None
        if not self.tiers.has_room:
            raise OutOfMemory(
                f"the swap space of {self.tiers.host_bytes:,} bytes is full",
                fix="raise kv_host_bytes or kv_disk_bytes in aios.toml, or run fewer agents at once",
            )
        snapshot = self._engine.snapshot(held.context)
        held.context = None
        self.tiers.keep(held, snapshot)
        self.snapshots += 1

    def swap_in(self, held: Held) -> bool:
        """Restore a snapshot; it continues exactly. False while it is on its way from the disk."""
        snapshot = self.tiers.bring(held)
        if snapshot is None:
            return False
        held.context = self._engine.restore(snapshot)
        self.tiers.forget(held)
        return True

    def settle(self) -> None:
        """Take note of what happened beside the steps."""
        self.tiers.settle()
        self.parking.settle()

    def awaits(self, held: Held) -> int:
        """Tokens of a queued generation's prompt that it will find in the pool: parked, or of another answer."""
        other = self._other(held) if self._engine.capabilities.holds else None  # else a fork is a copy
        if other is None:
            return self.parking.reusable(held)
        return min(other.computed, len(held.generation.order.prompt) - 1)

    def drop(self, held: Held) -> None:
        """Free whatever the generation holds; what it computed is parked, or stays in the prefix cache."""
        context, held.context = held.context, None
        self.tiers.forget(held)
        if context is None:
            return
        order, parked = held.generation.order, False
        try:
            if not isinstance(held.generation.ended, AiosError):
                self._conversations.note(order.program, order.history, context.tokens[: context.computed])
                parked = self._keep(held.generation, context)
        finally:
            if not parked:
                self._engine.release(context)

    def _keep(self, generation: Generation, context: Context) -> bool:
        """Have a context that ended well parked, or its blocks held; whether it is parked."""
        order = generation.order
        if not self.parking.on:
            self._residue.keep(order.program, context, order.priority)
        elif generation.index == 0:
            self.parking.park(order, context, time.monotonic())
            return True
        return False

    def program_ended(self, program: str) -> None:
        """Keep nothing of a program any longer."""
        self._conversations.forget(program)
        self.parking.forget(program)
        self._residue.forget(program)
        if self._engine.capabilities.callers:
            cast("ForCallers", self._engine).forget(program)

    def close(self) -> None:
        """Give up what is parked and delete what is on disk."""
        self.parking.clear()
        self.tiers.close()
