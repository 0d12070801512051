"""The open generations of a dispatcher: how they arrive, fail and end, and what is to be told of each."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import msgspec

from aios_kernel import errors
from aios_kernel.chat.generation import Generation
from aios_kernel.context.manager import ContextManager, Held
from aios_kernel.scheduler.answers import Answers
from aios_kernel.scheduler.board import Board
from aios_kernel.scheduler.protocol import Arrived, Event, Finished, Policy, Residency
from aios_kernel.syscalls import LlmDelta

_log = logging.getLogger(__name__)


class Update(msgspec.Struct, frozen=True):
    """What a step changed for one generation: it started, was swapped out or in, showed a delta, or ended."""

    generation: Generation
    delta: LlmDelta | None = None
    preempted: bool = False
    resumed: bool = False
    ended: bool = False
    """The last update of this generation; `generation.ended` says how."""


class Roster:
    """Open generations by id, in order of arrival. Used by the dispatcher's thread.

    Attributes:
        policy: hears of every event; may be exchanged between two steps.
        held: the open generations.
        board: the same as the policies see them.
        updates: what happened since they were last handed on.
    """

    def __init__(self, policy: Policy, contexts: ContextManager) -> None:
        self.policy = policy
        self.held: dict[int, Held] = {}
        self.updates: list[Update] = []
        self.board = Board(contexts)
        self._answers = Answers(forks=contexts.can_fork)
        self._contexts = contexts
        self._park()

    def arrive(self, generation: Generation) -> None:
        """Take a generation in; a further answer to a prompt is announced when the first one has computed it."""
        held = self.held[generation.id] = Held(generation)
        self._contexts.expect(generation.order)
        first = self.held.get(generation.first.id) if generation.first is not None else None
        if first is None or not self._answers.join(held, first):
            self._enter(held)

    def prompt_computed(self, held: Held) -> None:
        """A generation has emitted: further answers to its prompt, if they have waited for that, can be forked."""
        for other in self._answers.wake(held):
            self._enter(other)

    def change_policy(self, policy: Policy) -> None:
        """Let another policy decide from now on; it hears of the open generations."""
        self.policy = policy
        self._park()
        for held in [*self.held.values()]:
            if not self._answers.waits(held):
                self._announce(held)

    def tell(self, event: Event, now_s: float | None = None) -> bool:
        """Show the policy an event; False when it raised."""
        try:
            self.policy.observe(event, time.monotonic() if now_s is None else now_s)
        except Exception:  # noqa: BLE001 - a policy may come from a plugin; its fault must not end the thread
            _log.exception("the policy %s failed on %s", self.policy.name, event)
            return False
        return True

    def tell_all(self, events: Iterable[Event], now_s: float) -> None:
        """`tell` for several."""
        observe = self.policy.observe
        for event in events:
            try:
                observe(event, now_s)
            except Exception:  # noqa: BLE001 - as in `tell`
                _log.exception("the policy %s failed on %s", self.policy.name, event)

    def note(self, update: Update) -> None:
        """Have something told."""
        self.updates.append(update)

    def end(self, held: Held) -> None:
        """Let go of a generation that has ended, and of its context."""
        del self.held[held.generation.id]
        if self._answers.waits(held):  # no policy has heard of it
            self._answers.leave(held)
            return
        self.board.remove(held.generation.id)
        try:
            self._contexts.drop(held)
        except Exception:  # noqa: BLE001 - the answer stands even if the engine cannot free its context
            _log.exception("a context could not be released")
        self.tell(Finished(held.generation.id, held.generation.order.program))
        self.prompt_computed(held)
        self.board.review(held.kin)

    def fail(self, group: Iterable[Held], error: errors.AiosError) -> None:
        """End generations with an error; those that have ended are left alone."""
        for held in [*group]:
            if held.generation.id in self.held:
                held.generation.fail(error)
                self.end(held)
                self.note(Update(held.generation, ended=True))

    def fail_all(self, error: errors.AiosError) -> None:
        """End everything."""
        self.fail(self.held.values(), error)

    def residents(self) -> list[Held]:
        """Those whose context is in the pool."""
        return [held for held in self.held.values() if held.residency is Residency.RESIDENT]

    def _enter(self, held: Held) -> None:
        self.board.add(held)
        self._announce(held)

    def _park(self) -> None:
        self._contexts.parking.switch(on=getattr(self.policy, "parks", False))

    def _announce(self, held: Held) -> None:
        generation = held.generation
        if not self.tell(Arrived(generation.id, generation.order.program, self.board.row(generation.id))):
            self.fail([held], errors.InternalError(f"the policy {self.policy.name} failed; see the kernel's log"))


def shutting_down() -> errors.Cancelled:
    """What ends the calls that a kernel leaves open."""
    return errors.Cancelled("the kernel is shutting down", fix="run it again")


def too_big() -> errors.OutOfMemory:
    """What ends a call whose context no pool of this size can hold."""
    return errors.OutOfMemory(
        "the KV pool cannot hold this context", fix="aios serve --kv-tokens N with a larger N, or a shorter prompt"
    )


def engine_error(error: Exception) -> errors.AiosError:
    """Whatever an engine raised, as a typed error."""
    if isinstance(error, errors.AiosError):
        return error
    return errors.EngineError(f"the engine failed: {type(error).__name__}: {error}", fix="aios doctor")
