"""The dispatcher: one thread that asks the policy, carries the plan out on the engine and hands the tokens on.

Nothing here blocks the socket loop: orders come in through a queue, and what happened goes out in one batch a step.
Whatever fails, fails for the calls concerned only; the others go on.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeAlias, cast

from aios_kernel import errors
from aios_kernel.chat.generation import Generation
from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.context.manager import ContextManager
from aios_kernel.context.parking import Move
from aios_kernel.context.space import SwapSpace
from aios_kernel.engine.protocol import ForCallers
from aios_kernel.process import Standing
from aios_kernel.scheduler.embedding import EmbedQueue
from aios_kernel.scheduler.inbox import Inbox
from aios_kernel.scheduler.protocol import Event, Policy, ProgramEnded, View
from aios_kernel.scheduler.roster import Roster, Update, shutting_down
from aios_kernel.scheduler.standings import standings
from aios_kernel.scheduler.step import Stepper
from aios_kernel.syscalls import Replica

__all__ = ["Deliver", "Dispatcher", "Update"]

_log = logging.getLogger(__name__)
_MOMENT_S = 0.005
"""How long a step that can do nothing waits for an order."""
_ORDERS = 512
"""Orders taken between two steps at most: thousands that come at once must not hold up the answers that are on."""
_PARKED_S = 0.1
"""How often the policy is asked about parked contexts while no call is open."""

Deliver: TypeAlias = Callable[[list[Update]], None]


class Dispatcher:
    """Owns the engine. `submit`, `cancel` and `observe` may be called from any thread."""

    def __init__(
        self,
        model: LoadedModel,
        policy: Policy,
        deliver: Deliver,
        space: SwapSpace | None = None,
        moved: Callable[[list[Move]], None] | None = None,
    ) -> None:
        """`moved` hears of parked contexts that were moved."""
        self.model = model
        self.contexts = ContextManager(model.engine, model.codec.load_grammar, space)
        self._roster = Roster(policy, self.contexts)
        self._stepper = Stepper(model.engine, self._roster, self.contexts, self._wait_a_moment, self._flush)
        self._deliver = deliver
        self._moved = moved
        self._embeds = EmbedQueue(model.engine)
        self._inbox = Inbox()
        self._ids = itertools.count(1)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="aios-engine", daemon=True)

    @property
    def policy(self) -> Policy:
        """Who decides."""
        return self._roster.policy

    @property
    def view(self) -> View:
        """What the policy saw last; for looking from any thread."""
        return self._stepper.view

    def standings(self) -> dict[str, Standing]:
        """What each program has in the engine, as of the last step."""
        return standings(self.view, self._stepper.waits)

    def homes(self) -> Mapping[str, str]:
        """The replica that each family of programs is at; empty where the model has but one server."""
        engine = self.model.engine
        return cast("ForCallers", engine).homes() if engine.capabilities.callers else {}

    def replicas(self) -> Sequence[Replica]:
        """The servers of the model, if there are several."""
        engine = self.model.engine
        return cast("ForCallers", engine).replicas() if engine.capabilities.callers else ()

    @property
    def tokens_computed(self) -> int:
        """Tokens that went through the model."""
        return self._stepper.tokens_computed

    @property
    def tokens_cached(self) -> int:
        """Prompt tokens that came from the prefix cache."""
        return self._stepper.tokens_cached

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def next_id(self) -> int:
        """A fresh id for a generation."""
        return next(self._ids)

    def submit(self, generation: Generation, *, more: bool = False) -> None:
        """Queue a generation; it ends in exactly one update whose generation has `ended` set.

        `more`: others may follow at once, so that a thread that rests is not to begin a step for this one alone. It is
        woken by `wake`, or by whatever else comes.
        """

        def arrive() -> None:
            self._roster.arrive(generation)

        if not (self._inbox.put_quietly if more else self._inbox.put)(arrive):
            generation.fail(shutting_down())
            self._deliver([Update(generation, ended=True)])

    @property
    def rests(self) -> bool:
        """Whether its thread waits for orders, as nothing is open."""
        return self._inbox.rests

    @property
    def unbegun(self) -> int:
        """How many generations wait for `wake`."""
        return self._inbox.quiet

    def wake(self) -> None:
        """No others follow for now."""
        self._inbox.wake()

    def cancel(self, generation: Generation, error: errors.AiosError) -> None:
        """End a generation with an error, unless it has ended."""
        self._inbox.put(lambda: self._end_early(generation, error))

    def embed(self, texts: Sequence[Sequence[int]]) -> Future[list[list[float]]]:
        """Embed texts of tokens with the model; see `Engine.embed`. Cancel the future to give it up."""
        future: Future[list[list[float]]] = Future()
        if not self._inbox.put(lambda: self._embeds.put(texts, future)):
            future.set_exception(shutting_down())
        return future

    def observe(self, event: Event) -> None:
        """Tell the policy of something that happened outside the engine (tools, exits)."""
        self._inbox.put(lambda: self._learn(event))

    def set_policy(self, policy: Policy) -> None:
        """Change the policy between two steps; open calls are announced to the new one."""
        self._inbox.put(lambda: self._roster.change_policy(policy))

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
                self._take_orders(wait=not self._roster.held and not self._embeds)
                if (self._roster.held or self.contexts.parking) and not self._stopping:
                    self._stepper.run()
                if not self._stopping:
                    self._embeds.advance()
                if not (self._roster.held and self._stepper.overlaps and self._stepper.computed):
                    self._flush()  # else while the next step runs
        finally:
            self._leave()

    def _leave(self) -> None:
        """Whatever ended the thread: nobody is left waiting for an answer."""
        self._inbox.close()
        while not self._inbox.empty:
            self._obey(self._inbox.take())
        self._roster.fail_all(shutting_down())
        self._embeds.fail_all(shutting_down())
        self._flush()
        self.contexts.close()
        self.model.engine.close()

    def _take_orders(self, *, wait: bool) -> None:
        try:
            if wait:
                self._stepper.look()
                self._obey(self._inbox.wait(self._patience_s(), rest=True))
            for _ in range(_ORDERS):
                if self._stopping or self._inbox.empty:
                    return
                self._obey(self._inbox.take())
        except queue.Empty:
            pass

    def _patience_s(self) -> float | None:
        """How long to wait for an order when no call is open."""
        if self.contexts.tiers.fetching:
            return _MOMENT_S
        return _PARKED_S if self.contexts.parking else None

    def _wait_a_moment(self) -> bool:
        """Wait a little for an order; whether one came."""
        try:
            self._obey(self._inbox.wait(_MOMENT_S))
        except queue.Empty:
            return False
        return True

    def _obey(self, order: Callable[[], object]) -> None:
        try:
            self._stepper.interrupt()
            order()
        except Exception:  # noqa: BLE001 - one order must not end the thread that serves all
            _log.exception("an order to the dispatcher failed")

    def _learn(self, event: Event) -> None:
        if isinstance(event, ProgramEnded):
            self.contexts.program_ended(event.program)
        self._roster.tell(event)

    def _end_early(self, generation: Generation, error: errors.AiosError) -> None:
        held = self._roster.held.get(generation.id)
        if held is not None:
            self._roster.fail([held], error)
            self._flush()

    def _flush(self) -> None:
        if self._roster.updates:
            updates, self._roster.updates = self._roster.updates, []
            self._deliver(updates)
        if self.contexts.parking.moves:
            moves, self.contexts.parking.moves = self.contexts.parking.moves, []
            if self._moved is not None:
                self._moved(moves)
