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
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

from aios_kernel import errors
from aios_kernel.chat.generation import Generation
from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.context.manager import ContextManager, Held
from aios_kernel.context.space import SwapSpace
from aios_kernel.engine.protocol import Context, KvExhausted, StepOutput
from aios_kernel.scheduler.embedding import EmbedQueue
from aios_kernel.scheduler.protocol import (
    Arrived,
    Computed,
    Event,
    Finished,
    Plan,
    Policy,
    ProgramEnded,
    Residency,
    Task,
    View,
)
from aios_kernel.syscalls import LlmDelta

_log = logging.getLogger(__name__)
_IDLE_PLAN_WAIT_S = 0.005


@dataclass(frozen=True, slots=True)
class Update:
    """What a step changed for one generation: it started, was swapped out or in, showed a delta, or ended."""

    generation: Generation
    delta: LlmDelta | None = None
    preempted: bool = False
    resumed: bool = False
    ended: bool = False
    """The last update of this generation; `generation.ended` says how."""


Deliver: TypeAlias = Callable[[list[Update]], None]


class Dispatcher:
    """Owns the engine. `submit`, `cancel` and `observe` may be called from any thread."""

    def __init__(self, model: LoadedModel, policy: Policy, deliver: Deliver, space: SwapSpace | None = None) -> None:
        self.model = model
        self.policy = policy
        self.contexts = ContextManager(model.engine, model.codec.load_grammar, space)
        self.tokens_computed = 0
        self.tokens_cached = 0
        self._deliver = deliver
        self._held: dict[int, Held] = {}
        self._embeds = EmbedQueue(model.engine)
        self._updates: list[Update] = []
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._ids = itertools.count(1)
        self._fruitless = 0  # times that contexts were moved since the engine last computed anything
        self._stopping = False
        self._closed = False
        self._gate = threading.Lock()  # nothing is queued behind the last look into the inbox
        self._thread = threading.Thread(target=self._run, name="aios-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def next_id(self) -> int:
        """A fresh id for a generation."""
        return next(self._ids)

    def submit(self, generation: Generation) -> None:
        """Queue a generation; it ends in exactly one update whose generation has `ended` set."""
        with self._gate:
            if not self._closed:
                self._inbox.put(lambda: self._arrive(generation))
                return
        generation.fail(_shutting_down())
        self._deliver([Update(generation, ended=True)])

    def cancel(self, generation: Generation, error: errors.AiosError) -> None:
        """End a generation with an error, unless it has ended."""
        self._inbox.put(lambda: self._end_early(generation, error))

    def embed(self, texts: Sequence[Sequence[int]]) -> Future[list[list[float]]]:
        """Embed texts of tokens with the model; see `Engine.embed`. Cancel the future to give it up."""
        future: Future[list[list[float]]] = Future()
        with self._gate:
            if not self._closed:
                self._inbox.put(lambda: self._embeds.put(texts, future))
                return future
        future.set_exception(_shutting_down())
        return future

    def observe(self, event: Event) -> None:
        """Tell the policy of something that happened outside the engine (tools, exits)."""
        self._inbox.put(lambda: self._learn(event))

    def set_policy(self, policy: Policy) -> None:
        """Change the policy between two steps; open calls are announced to the new one."""

        def change() -> None:
            self.policy = policy
            for held in [*self._held.values()]:
                self._announce(held)

        self._inbox.put(change)

    def stop(self) -> None:
        """Cancel everything, stop the thread and close the engine. Blocks until the step in progress has ended."""

        def stop() -> None:
            self._stopping = True

        self._inbox.put(stop)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take_orders(wait=not self._held and not self._embeds)
                if self._held and not self._stopping:
                    self._step_safely()
                if not self._stopping:
                    self._embeds.advance()
                self._flush()
        finally:
            self._leave()

    def _leave(self) -> None:
        """Whatever ended the thread: nobody is left waiting for an answer."""
        with self._gate:
            self._closed = True
        while not self._inbox.empty():
            self._obey(self._inbox.get())
        self._fail_all([*self._held.values()], _shutting_down())
        self._embeds.fail_all(_shutting_down())
        self._flush()
        self.contexts.close()
        self.model.engine.close()

    def _take_orders(self, *, wait: bool) -> None:
        try:
            if wait:
                self._obey(self._inbox.get())
            while not self._stopping:
                self._obey(self._inbox.get_nowait())
        except queue.Empty:
            pass

    def _obey(self, order: Callable[[], object]) -> None:
        try:
            order()
        except Exception:  # noqa: BLE001 - one order must not end the thread that serves all
            _log.exception("an order to the dispatcher failed")

    def _arrive(self, generation: Generation) -> None:
        held = self._held[generation.id] = Held(generation)
        self._announce(held)

    def _announce(self, held: Held) -> None:
        generation = held.generation
        if not self._tell(Arrived(generation.id, generation.order.program)):
            self._fail_all([held], errors.InternalError(f"the policy {self.policy.name} failed; see the kernel's log"))

    def _learn(self, event: Event) -> None:
        if isinstance(event, ProgramEnded):
            self.contexts.program_ended(event.program)
        self._tell(event)

    def _tell(self, event: Event) -> bool:
        """Show the policy an event; False when it raised."""
        try:
            self.policy.observe(event, time.monotonic())
        except Exception:  # noqa: BLE001 - a policy may come from a plugin; its fault must not end the thread
            _log.exception("the policy %s failed on %s", self.policy.name, event)
            return False
        return True

    def _end_early(self, generation: Generation, error: errors.AiosError) -> None:
        held = self._held.get(generation.id)
        if held is not None:
            self._fail_all([held], error)
            self._flush()

    # --- one step ---------------------------------------------------------------------------------------------------

    def _step_safely(self) -> None:
        try:
            self._step()
        except Exception as error:  # noqa: BLE001 - the thread must live; the calls concerned must end
            _log.exception("a step failed outside the engine")
            self._fail_all([*self._held.values()], errors.InternalError(f"the dispatcher failed: {error}"))

    def _step(self) -> None:
        self.contexts.settle()
        plan = self.policy.decide(self._view(), time.monotonic())
        moved = self._move(plan)
        batch = self._batch(plan)
        if batch:
            self._compute(batch)
        elif moved and self._fruitless <= len(self._held):
            self._fruitless += 1
        else:
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
            can_swap=self.contexts.can_swap,
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
            if held is not None and held.residency is Residency.RESIDENT and self.contexts.can_swap:
                self._swap_out(held)
                moved = True
        for task in plan.swap_in:
            moved |= self._brought(task, Residency.SWAPPED, self.contexts.swap_in)
        for task in plan.admit:
            moved |= self._brought(task, Residency.QUEUED, self.contexts.admit)
        return moved

    def _brought(self, task: int, place: Residency, bring: Callable[[Held], bool]) -> bool:
        held = self._held.get(task)
        if held is None or held.residency is not place:
            return False
        try:
            if not bring(held):
                return False  # it is on its way
        except KvExhausted:
            return False
        except Exception as error:  # noqa: BLE001 - a context that cannot be opened ends alone
            _log.exception("a context could not be brought in")
            self._fail_all([held], _engine_error(error))
            return True
        if place is Residency.QUEUED:
            self.tokens_cached += held.generation.cached
        else:
            self._updates.append(Update(held.generation, resumed=True))
        return True

    def _swap_out(self, held: Held) -> None:
        try:
            self.contexts.swap_out(held)
        except Exception as error:  # noqa: BLE001 - a context that cannot be saved ends alone
            _log.exception("a context could not be swapped out")
            self._fail_all([held], _engine_error(error))
        else:
            self._updates.append(Update(held.generation, preempted=True))

    def _batch(self, plan: Plan) -> list[tuple[Held, Context, int]]:
        """The part of the plan that can run: resident contexts, each once, within the pool and the engine's limits."""
        engine = self.model.engine
        free, budget = engine.kv_free(), engine.capabilities.max_step_tokens
        batch: dict[int, tuple[Held, Context, int]] = {}
        for task, tokens in plan.run:
            held = self._held.get(task)
            if held is None or held.context is None or task in batch or len(batch) >= engine.capabilities.max_batch:
                continue
            tokens = min(tokens, held.pending, budget)
            need = engine.kv_need(held.context, tokens) if tokens > 0 else 0
            if tokens > 0 and need <= free:
                batch[task] = (held, held.context, tokens)
                free -= need
                budget -= tokens
        return [*batch.values()]

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
        self._fruitless = 0
        for (held, _, _), output in zip(batch, outputs, strict=True):
            self._accept(held, output)

    def _accept(self, held: Held, output: StepOutput) -> None:
        generation = held.generation
        emitted = int(output.token is not None)
        self.tokens_computed += output.computed
        self.tokens_cached += output.context.cached - generation.cached
        generation.cached = output.context.cached  # grows while others compute the same prefix
        if output.prompt:
            generation.note_prompt(output.prompt)
        self._tell(Computed(generation.id, generation.order.program, output.computed, emitted))
        if output.error is not None:
            self._fail_all([held], output.failure or errors.EngineError(output.error, fix="aios doctor"))
        elif emitted:
            self._show(held, output)

    def _show(self, held: Held, output: StepOutput) -> None:
        generation = held.generation
        try:
            delta = generation.accept(output)
        except Exception as error:  # noqa: BLE001 - an answer that cannot be turned into text ends alone
            _log.exception("a token could not be taken")
            self._fail_all([held], errors.InternalError(f"the answer could not be read: {error}", fix="aios doctor"))
            return
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
        self._tell(Finished(held.generation.id, held.generation.order.program))

    def _fail_all(self, group: list[Held], error: errors.AiosError) -> None:
        for held in group:
            if held.generation.id in self._held:
                held.generation.fail(error)
                self._release(held)
                self._updates.append(Update(held.generation, ended=True))

    def _relieve(self, group: list[Held]) -> None:
        """The pool was fuller than the plan knew: swap the newest out, or end it when that would free nothing."""
        newest = max(group, key=lambda held: held.generation.arrived_s)
        others = any(held.context is not None and held is not newest for held in self._held.values())
        if others and self.contexts.can_swap and self._fruitless <= len(self._held):
            self._fruitless += 1
            self._swap_out(newest)
        else:
            self._fail_all([newest], _too_big())

    def _stuck(self) -> None:
        """Nothing could run. Alone in the pool means too big; else wait a moment for an order or an end."""
        residents = [held for held in self._held.values() if held.residency is Residency.RESIDENT]
        if self.contexts.tiers.fetching:
            self._wait_a_moment()
        elif not residents:
            self._refuse_one()
        elif len(self._held) == 1:
            self._fail_all(residents, _too_big())
        elif not self._wait_a_moment():
            # Residents that cannot grow block each other: the newest makes room.
            self._relieve(residents)

    def _wait_a_moment(self) -> bool:
        """Wait a little for an order; whether one came."""
        try:
            self._obey(self._inbox.get(timeout=_IDLE_PLAN_WAIT_S))
        except queue.Empty:
            return False
        return True

    def _refuse_one(self) -> None:
        """The pool is empty and still nothing was brought in: whoever is too big for it ends."""
        view = self._view()
        for task in view.tasks:
            if view.kv_need(task, task.pending) > view.kv_total:
                self._fail_all([self._held[task.id]], _too_big())
                return
        idle = errors.InternalError(f"the policy {self.policy.name} runs nothing although the KV pool is free")
        self._fail_all([next(iter(self._held.values()))], idle)

    def _flush(self) -> None:
        if self._updates:
            updates, self._updates = self._updates, []
            self._deliver(updates)


def _shutting_down() -> errors.Cancelled:
    return errors.Cancelled("the kernel is shutting down", fix="run it again")


def _too_big() -> errors.OutOfMemory:
    return errors.OutOfMemory(
        "the KV pool cannot hold this context", fix="aios serve --kv-tokens N with a larger N, or a shorter prompt"
    )


def _engine_error(error: Exception) -> errors.AiosError:
    if isinstance(error, errors.AiosError):
        return error
    return errors.EngineError(f"the engine failed: {type(error).__name__}: {error}", fix="aios doctor")
