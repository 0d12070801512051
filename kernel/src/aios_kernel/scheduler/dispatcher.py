"""The dispatcher: one thread that asks the policy, carries the plan out on the engine and hands the tokens on.

Nothing here blocks the socket loop: orders come in through a queue, and what happened goes out in one batch a step.
Whatever fails, fails for the calls concerned only; the others go on.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from aios_kernel import errors
from aios_kernel.chat.generation import Generation
from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.context.manager import ContextManager, Held
from aios_kernel.engine.protocol import Context, KvExhausted, StepOutput
from aios_kernel.scheduler.protocol import Arrived, Computed, Event, Finished, Plan, Policy, Residency, Task, View
from aios_kernel.syscalls import LlmDelta

_log = logging.getLogger(__name__)
_IDLE_PLAN_WAIT_S = 0.005


@dataclass(frozen=True, slots=True)
class Update:
    """What a step changed for one generation: it started, was swapped out, showed a delta, or ended."""

    generation: Generation
    delta: LlmDelta | None = None
    preempted: bool = False
    ended: bool = False
    """The last update of this generation; `generation.ended` says how."""


Deliver: TypeAlias = Callable[[list[Update]], None]


class Dispatcher:
    """Owns the engine. `submit`, `cancel` and `observe` may be called from any thread."""

    def __init__(self, model: LoadedModel, policy: Policy, deliver: Deliver) -> None:
        self.model = model
        self.policy = policy
        self.contexts = ContextManager(model.engine)
        self.tokens_computed = 0
        self.tokens_cached = 0
        self._deliver = deliver
        self._held: dict[int, Held] = {}
        self._updates: list[Update] = []
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ids = itertools.count(1)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="aios-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def next_id(self) -> int:
        """A fresh id for a generation."""
        return next(self._ids)

    def submit(self, generation: Generation) -> None:
        """Queue a generation; it ends in exactly one update whose generation has `ended` set."""
        self._inbox.put(lambda: self._arrive(generation))

    def cancel(self, generation: Generation, error: errors.AiosError) -> None:
        """End a generation with an error, unless it has ended."""
        self._inbox.put(lambda: self._end_early(generation, error))

    def observe(self, event: Event) -> None:
        """Tell the policy of something that happened outside the engine (tools, exits)."""
        self._inbox.put(lambda: self.policy.observe(event, time.monotonic()))

    def set_policy(self, policy: Policy) -> None:
        """Change the policy between two steps; open calls are announced to the new one."""

        def change() -> None:
            self.policy = policy
            for held in self._held.values():
                policy.observe(Arrived(held.generation.id, held.generation.order.program), time.monotonic())

        self._inbox.put(change)

    def stop(self) -> None:
        """Cancel everything, stop the thread and close the engine. Blocks until the step in progress has ended."""

        def stop() -> None:
            self._stopping = True

        self._inbox.put(stop)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self._take_orders(wait=not self._held)
            if self._held and not self._stopping:
                try:
                    self._step()
                except Exception as error:  # noqa: BLE001 - the thread must live; the calls concerned must end
                    _log.exception("a step failed outside the engine")
                    self._fail_all([*self._held.values()], errors.InternalError(f"the dispatcher failed: {error}"))
            self._flush()
        self._fail_all([*self._held.values()], errors.Cancelled("the kernel is shutting down"))
        self._flush()
        self.model.engine.close()

    def _take_orders(self, *, wait: bool) -> None:
        try:
            if wait:
                self._inbox.get()()
            while not self._stopping:
                self._inbox.get_nowait()()
        except queue.Empty:
            pass

    def _arrive(self, generation: Generation) -> None:
        self._held[generation.id] = Held(generation)
        self.policy.observe(Arrived(generation.id, generation.order.program), time.monotonic())

    def _end_early(self, generation: Generation, error: errors.AiosError) -> None:
        held = self._held.get(generation.id)
        if held is not None:
            self._fail_all([held], error)
            self._flush()

    # --- one step ---------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        plan = self.policy.decide(self._view(), time.monotonic())
        moved = self._move(plan)
        batch = self._batch(plan)
        if batch:
            self._compute(batch)
        elif not moved:
            self._stuck()

    def _view(self) -> View:
        engine = self.model.engine
        caps = engine.capabilities
        tasks = [self._task(held) for held in self._held.values()]
        return View(
            tasks=tasks,
            kv_free=engine.kv_free(),
            kv_total=caps.kv_tokens,
            block_size=caps.block_size,
            max_batch=caps.max_batch,
            max_step_tokens=caps.max_step_tokens,
            can_swap=caps.snapshot,
        )

    def _task(self, held: Held) -> Task:
        generation, order = held.generation, held.generation.order
        return Task(
            id=generation.id,
            program=order.program,
            agent=order.agent,
            group=order.group,
            priority=order.priority,
            arrived_s=generation.arrived_s,
            residency=held.residency,
            length=held.length,
            pending=held.pending,
            generated=generation.generated,
        )

    def _move(self, plan: Plan) -> bool:
        """Swap out, swap in, admit, in this order; what does not fit stays where it is. Gives whether any moved."""
        moved = False
        for task in plan.swap_out:
            held = self._held.get(task)
            if held is not None and held.residency is Residency.RESIDENT:
                self.contexts.swap_out(held)
                self._updates.append(Update(held.generation, preempted=True))
                moved = True
        for task in plan.swap_in:
            moved |= self._brought(task, Residency.SWAPPED, self.contexts.swap_in)
        for task in plan.admit:
            moved |= self._brought(task, Residency.QUEUED, self.contexts.admit)
        return moved

    def _brought(self, task: int, place: Residency, bring: Callable[[Held], None]) -> bool:
        held = self._held.get(task)
        if held is None or held.residency is not place:
            return False
        try:
            bring(held)
        except KvExhausted:
            return False
        except Exception as error:  # noqa: BLE001 - a context that cannot be opened ends alone
            _log.exception("a context could not be brought in")
            self._fail_all([held], _engine_error(error))
            return True
        if place is Residency.QUEUED:
            self.tokens_cached += held.generation.cached
        return True

    def _batch(self, plan: Plan) -> list[tuple[Held, Context, int]]:
        """The part of the plan that can run: resident contexts, within the pool."""
        engine = self.model.engine
        free = engine.kv_free()
        batch: list[tuple[Held, Context, int]] = []
        for task, tokens in plan.run:
            held = self._held.get(task)
            if held is None or held.context is None:
                continue
            tokens = min(tokens, held.pending)
            need = engine.kv_need(held.context, tokens)
            if tokens > 0 and need <= free:
                batch.append((held, held.context, tokens))
                free -= need
        return batch

    def _compute(self, batch: list[tuple[Held, Context, int]]) -> None:
        now = time.monotonic()
        for held, _, _ in batch:
            if held.generation.started_s is None:
                held.generation.started_s = now
                self._updates.append(Update(held.generation))
        try:
            outputs = self.model.engine.step([(context, tokens) for _, context, tokens in batch])
        except KvExhausted:
            self._relieve([held for held, _, _ in batch])
            return
        except Exception as error:  # noqa: BLE001 - whatever a forward raises ends its batch, not the kernel
            _log.exception("a step of the engine failed")
            self._fail_all([held for held, _, _ in batch], _engine_error(error))
            return
        for (held, _, _), output in zip(batch, outputs, strict=True):
            self._accept(held, output)

    def _accept(self, held: Held, output: StepOutput) -> None:
        generation = held.generation
        emitted = int(output.token is not None)
        self.tokens_computed += output.computed
        self.policy.observe(
            Computed(generation.id, generation.order.program, output.computed, emitted), time.monotonic()
        )
        if output.error is not None:
            self._fail_all([held], errors.EngineError(output.error, fix="aios doctor"))
            return
        if not emitted:
            return
        delta = generation.accept(output)
        if generation.ended is not None:
            self._release(held)
        if delta is not None or generation.ended is not None:
            self._updates.append(Update(generation, delta, ended=generation.ended is not None))

    # --- ends -------------------------------------------------------------------------------------------------------

    def _release(self, held: Held) -> None:
        del self._held[held.generation.id]
        try:
            self.contexts.drop(held)
        except Exception:  # noqa: BLE001 - the answer stands even if the engine cannot free its context
            _log.exception("a context could not be released")
        self.policy.observe(Finished(held.generation.id, held.generation.order.program), time.monotonic())

    def _fail_all(self, group: list[Held], error: errors.AiosError) -> None:
        for held in group:
            if held.generation.id in self._held:
                held.generation.fail(error)
                self._release(held)
                self._updates.append(Update(held.generation, ended=True))

    def _relieve(self, batch: list[Held]) -> None:
        """The pool was fuller than the plan knew: swap the newest out, or end it when it is alone."""
        newest = max(batch, key=lambda held: held.generation.arrived_s)
        if len(self._held) > 1 and self.model.engine.capabilities.snapshot:
            self.contexts.swap_out(newest)
            self._updates.append(Update(newest.generation, preempted=True))
        else:
            self._fail_all([newest], _too_big())

    def _stuck(self) -> None:
        """Nothing could run. Alone in an empty pool means too big; else wait for an order or an end."""
        residents = [held for held in self._held.values() if held.residency is Residency.RESIDENT]
        if not residents or len(self._held) == 1:
            self._fail_all([next(iter(self._held.values()))], _too_big())
            return
        try:
            self._inbox.get(timeout=_IDLE_PLAN_WAIT_S)()
        except queue.Empty:
            # Residents that cannot grow block each other: the newest makes room.
            self._relieve(residents)

    def _flush(self) -> None:
        if self._updates:
            updates, self._updates = self._updates, []
            self._deliver(updates)


def _too_big() -> errors.OutOfMemory:
    return errors.OutOfMemory(
        "the KV pool cannot hold this context", fix="aios serve --kv-tokens N with a larger N, or a shorter prompt"
    )


def _engine_error(error: Exception) -> errors.AiosError:
    if isinstance(error, errors.AiosError):
        return error
    return errors.EngineError(f"the engine failed: {type(error).__name__}: {error}", fix="aios doctor")
