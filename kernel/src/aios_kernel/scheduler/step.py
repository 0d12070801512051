"""One step: show the policy the state, carry its plan out on the engine, take the tokens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from aios_kernel import errors
from aios_kernel.context.manager import ContextManager, Held
from aios_kernel.engine.protocol import Context, Engine, KvExhausted, StepOutput, TwoPhase
from aios_kernel.scheduler.moves import Moves
from aios_kernel.scheduler.protocol import Computed, Event, Plan, Residency, View
from aios_kernel.scheduler.roster import Roster, Update, engine_error, too_big
from aios_kernel.scheduler.stretch import Stretch

_log = logging.getLogger(__name__)


class Stepper:
    """Runs the steps of a dispatcher, on its thread.

    Args:
        engine: what the contexts run on.
        roster: the open generations.
        contexts: where their KV is.
        wait: waits a moment for an order; whether one came.
        meanwhile: what the thread has to do beside the steps; called while an engine of two phases computes.

    Attributes:
        computed: whether the last step computed anything.
        tokens_computed: that went through the model.
        view: what the policy saw last; other threads may read it.
        waits: what tasks wait for if not for room, by the last plan.
    """

    def __init__(
        self,
        engine: Engine[Any, Any],
        roster: Roster,
        contexts: ContextManager,
        wait: Callable[[], bool],
        meanwhile: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._roster = roster
        self._contexts = contexts
        self._pause = wait
        self._meanwhile = meanwhile
        self._moves = Moves(roster, contexts)
        self._stretch = Stretch(roster)
        self._fruitless = 0  # times that contexts were moved since the engine last computed anything
        self._tokens_joined = 0  # cached tokens that contexts took while they were being prefilled
        self.computed = False
        self.tokens_computed = 0
        self.waits: Mapping[int, str] = {}
        self.view = self._view()

    @property
    def tokens_cached(self) -> int:
        """Prompt tokens that came from the prefix cache."""
        return self._moves.tokens_cached + self._tokens_joined

    def run(self) -> None:
        """One step; a fault outside the engine ends the open generations, never the thread."""
        try:
            if self._stretch.left and self._has_blocks():
                self._go_on()
            else:
                self._step()
        except Exception as error:  # noqa: BLE001 - the thread must live; the calls concerned must end
            self._stretch.end()
            _log.exception("a step failed outside the engine")
            self._roster.fail_all(errors.InternalError(f"the dispatcher failed: {error}"))

    def interrupt(self) -> None:
        """Something is about to happen: the policy is to know all that was computed, and is asked again after it."""
        self._stretch.end()

    @property
    def overlaps(self) -> bool:
        """Whether `meanwhile` is called while the engine computes."""
        return self._engine.capabilities.two_phase

    def _wait(self) -> bool:
        self._meanwhile()  # nobody is to wait with us for what has happened already
        return self._pause()

    def _step(self) -> None:
        self._stretch.end()
        self.computed = False
        self._contexts.settle()
        self.view = self._view()
        plan = self._roster.policy.decide(self.view, time.monotonic())
        self.waits = plan.waits
        for task, error in plan.refuse:
            self._roster.fail([held for held in (self._roster.held.get(task),) if held is not None], error)
        tasks = self.view.by_id()
        seen = {task: tasks[task].pending for task in plan.admit if task in tasks}
        moved = self._moves.carry_out(plan)
        batch = self._batch(plan, seen)
        if batch:
            self._compute(batch)
            if plan.repeat and not moved and self._engine.capabilities.step_control:  # others give no token a step
                self._stretch.begin(batch, plan.repeat)
        elif moved and self._may_move_on():
            self._fruitless += 1
        elif plan.patient:
            self._wait()
        elif self._roster.held and not plan.refuse:
            self._stuck()

    def look(self) -> None:
        """Bring `view` up to date."""
        self.view = self._view()

    def _may_move_on(self) -> bool:
        """Whether contexts may still be moved although nothing was computed for a while."""
        return self._fruitless <= len(self._roster.held)

    def _view(self) -> View:
        caps = self._engine.capabilities
        tasks, placed, index = self._roster.board.look()
        return View(
            tasks=tasks,
            kv_free=self._engine.kv_free(),
            kv_total=caps.kv_tokens,
            block_size=caps.block_size,
            max_batch=caps.max_batch,
            max_step_tokens=caps.max_step_tokens,
            can_swap=self._contexts.can_swap,
            parked=self._contexts.parking.rows,
            host_free=self._contexts.tiers.room_tokens if self._contexts.can_swap else 0,
            placed=placed,
            index=index,
        )

    def _batch(self, plan: Plan, seen: Mapping[int, int]) -> list[tuple[Held, Context, int]]:
        """The part of the plan that can run: resident contexts, each once, within the pool and the engine's limits.

        `seen` tells how many tokens the policy saw pending of those that have just got their contexts. What it left out
        since it is parked, a context takes, as far as it lies within a block, only as it computes.
        """
        engine, limits, known = self._engine, self._engine.capabilities, self._roster.held
        free, budget, most = engine.kv_free(), limits.max_step_tokens, limits.max_batch
        batch: dict[int, tuple[Held, Context, int]] = {}
        for task, tokens in plan.run:
            held = known.get(task)
            context = held.context if held is not None else None
            if held is None or context is None or task in batch or len(batch) >= most:
                continue
            pending = context.pending
            if task in seen:
                tokens += max(0, pending - seen[task])
            tokens = min(tokens, pending, budget)
            need = engine.kv_need(context, tokens) if tokens > 0 else 0
            if tokens > 0 and need <= free:
                batch[task] = (held, context, tokens)
                free -= need
                budget -= tokens
        return [*batch.values()]

    def _compute(self, batch: list[tuple[Held, Context, int]]) -> None:
        now = time.monotonic()
        for held, _, _ in batch:
            if held.generation.started_s is None:
                held.generation.started_s = now
                self._roster.note(Update(held.generation))
        members = [held for held, _, _ in batch]
        outputs = self._run_engine(members, [(context, tokens) for _, context, tokens in batch])
        if outputs:
            self._accept_all(members, outputs)

    def _run_engine(self, members: Sequence[Held], plan: list[tuple[Context, int]]) -> Sequence[StepOutput]:
        """Nothing comes of it if the whole step fails; that is dealt with here."""
        try:
            outputs = self._outputs(plan)
        except KvExhausted:
            self.interrupt()
            self._relieve(members)
            return ()
        except Exception as error:  # noqa: BLE001 - whatever a forward raises ends its batch, not the kernel
            _log.exception("a step of the engine failed")
            self.interrupt()
            self._roster.fail(members, engine_error(error))
            return ()
        self._fruitless = 0
        self.computed = True
        return outputs

    def _go_on(self) -> None:
        """A step like the last one."""
        members = self._stretch.members
        outputs = self._run_engine(members, self._stretch.plan)
        if outputs:
            self._stretch.stepped()
            self._accept_more(members, outputs)

    def _has_blocks(self) -> bool:
        """Whether the pool has a block for each context that goes on."""
        return self._engine.kv_free() >= len(self._stretch.members) * self._engine.capabilities.block_size

    def _accept_more(self, members: Sequence[Held], outputs: Sequence[StepOutput]) -> None:
        """One more token of each, and nothing else that the policy would have to hear of now."""
        self.tokens_computed += len(outputs)
        if self._stretch.keep([output.token for output in outputs]):
            return
        for held, output in zip(members, outputs, strict=True):
            token = output.token
            if output.error is not None:
                self.interrupt()
                self._fail(held, output)
            elif token is None:
                self.interrupt()
            elif not held.generation.keep(token):
                self._show(held, output)

    def _accept_all(self, members: Sequence[Held], outputs: Sequence[StepOutput]) -> None:
        """Book what a step computed, tell the policy, and hand the tokens on."""
        told: list[Event] = []
        for held, output in zip(members, outputs, strict=True):
            generation, computed = held.generation, output.computed
            self.tokens_computed += computed
            generation.computed += computed
            cached = output.context.cached
            if cached != generation.cached:  # it grows while others compute the same prefix
                self._tokens_joined += cached - generation.cached
                generation.cached = cached
            if output.prompt:
                generation.note_prompt(output.prompt)
            emitted = 0 if output.token is None else 1
            told.append(Computed(generation.id, generation.order.program, computed, emitted))
        self._roster.tell_all(told, time.monotonic())
        for held, output in zip(members, outputs, strict=True):
            generation, token = held.generation, output.token
            if output.error is not None:
                self._fail(held, output)
            elif token is not None:
                if not generation.generated:
                    self._roster.prompt_computed(held)
                if not generation.keep(token):
                    self._show(held, output)

    def _outputs(self, plan: list[tuple[Context, int]]) -> list[StepOutput]:
        if not self.overlaps:
            return self._engine.step(plan)
        engine = cast("TwoPhase[Any, Any]", self._engine)
        launched = engine.launch(plan)
        self._meanwhile()
        return engine.collect(launched)

    def _fail(self, held: Held, output: StepOutput) -> None:
        self._roster.fail([held], output.failure or errors.EngineError(output.error or "", fix="aios doctor"))

    def _show(self, held: Held, output: StepOutput) -> None:
        generation = held.generation
        try:
            delta = generation.accept(output)
        except Exception as error:  # noqa: BLE001 - an answer that cannot be turned into text ends alone
            _log.exception("a token could not be taken")
            self.interrupt()
            spoilt = errors.InternalError(f"the answer could not be read: {error}", fix="aios doctor")
            self._roster.fail([held], spoilt)
            return
        if generation.ended is not None:
            self.interrupt()
            self._roster.end(held)
            self._roster.note(Update(generation, delta, ended=True))
        elif delta is not None:
            self._roster.note(Update(generation, delta))

    # --- when memory is short ---------------------------------------------------------------------------------------

    def _relieve(self, group: Sequence[Held]) -> None:
        """The pool was fuller than the plan knew: what is parked goes first, then the newest is swapped out.

        The newest ends when swapping it out would free nothing.
        """
        if self._contexts.parking.drop_oldest(Residency.RESIDENT):
            return
        newest = max(group, key=lambda held: held.generation.arrived_s)
        others = any(held is not newest for held in self._roster.residents())
        if others and self._may_move_on() and self._make_swap_room():
            self._fruitless += 1
            self._moves.swap_out(newest)
        else:
            self._roster.fail([newest], too_big())

    def _make_swap_room(self) -> bool:
        """Whether a context can be swapped out, if need be in the room of parked ones."""
        parking = self._contexts.parking
        while not self._contexts.can_swap and parking.drop_oldest(Residency.SWAPPED):
            pass
        return self._contexts.can_swap

    def _stuck(self) -> None:
        """Nothing could run: what is parked gives way, the oldest first.

        Then, alone in the pool means too big; else wait a moment for an order or an end.
        """
        residents = self._roster.residents()
        if self._contexts.tiers.fetching:
            self._wait()
        elif self._contexts.parking.drop_oldest(Residency.RESIDENT):
            pass
        elif not residents:
            self._refuse_one()
        elif len(self._roster.held) == 1:
            self._roster.fail(residents, too_big())
        elif not self._wait():
            # Residents that cannot grow block each other: the newest makes room.
            self._relieve(residents)

    def _refuse_one(self) -> None:
        """The pool is empty and still nothing was brought in: whoever is too big for it ends."""
        view = self._view()
        for task in view.tasks:
            if view.kv_need(task, task.pending) > view.kv_total:
                self._roster.fail([self._roster.held[task.id]], too_big())
                return
        idle = errors.InternalError(f"the policy {self._roster.policy.name} runs nothing although the KV pool is free")
        self._roster.fail([next(iter(self._roster.held.values()))], idle)
