"""A dispatcher with programs that talk in turns, and a policy that parks, stows, fetches and drops at random."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from aios_kernel import errors
from aios_kernel.chat.generation import Generation
from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.chat.service import ChatService
from aios_kernel.config import Config
from aios_kernel.context.space import SwapSpace
from aios_kernel.plugins import Plugins
from aios_kernel.process import Program
from aios_kernel.scheduler.dispatcher import Dispatcher, Update
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.scheduler.protocol import Plan, Policy, ProgramEnded, View
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling


class Restless(Fifo):
    """Fifo for the calls; what is parked is moved about at random, and sometimes named wrongly."""

    name = "restless"
    parks = True

    def __init__(self, seed: int = 0) -> None:
        super().__init__({})
        self._random = random.Random(seed)
        self.views: list[View] = []

    def decide(self, view: View, now_s: float) -> Plan:
        self.views = [*self.views[-200:], view]
        plan = super().decide(view, now_s)
        for parked in view.parked:
            order = self._random.choice([plan.stow, plan.fetch, plan.stow, plan.fetch, plan.drop, None, None, None])
            if order is not None:
                order.append(parked.program)
        plan.fetch.append("nobody")
        return plan


class Life:
    """Programs that hold conversations on one dispatcher; checks at its end that nothing is left behind."""

    def __init__(self, model: LoadedModel, policy: Policy, space: SwapSpace | None = None) -> None:
        self.model = model
        self.ends: dict[int, int] = {}
        self.groups: dict[str, str] = {}
        """Of programs; `g` if not named."""
        self._changed = threading.Condition()
        self._service = ChatService(model, Config())
        self._talks: dict[str, list[Message]] = {}
        self.dispatcher = Dispatcher(model, policy, self._deliver, space)
        self.dispatcher.start()

    def ask(self, program: str, text: str, tokens: int = 8, *, stream: bool = False, **order: Any) -> Generation:
        """The program's next turn; its history is what was said before."""
        talk = self._talks.setdefault(program, [])
        talk.append(Message(role="user", content=text))
        sampling = Sampling(max_tokens=tokens, temperature=0.0, **order)
        call = LlmChat(messages=[*talk], sampling=sampling, stream=stream)
        owner = Program(id=program, agent="a", principal="me", group=self.groups.get(program, "g"))
        generation = self._service.prepare(self.dispatcher.next_id(), call, owner)
        self.dispatcher.submit(generation)
        return generation

    def hear(self, program: str, generation: Generation) -> Any:
        """Wait for an answer and put it into the conversation."""
        self.wait([generation])
        if isinstance(generation.ended, LlmResult):
            self._talks[program].append(Message(role="assistant", content=generation.ended.text))
        return generation.ended

    def turn(self, program: str, text: str, tokens: int = 8) -> str:
        """One turn; gives its answer."""
        result = self.hear(program, self.ask(program, text, tokens))
        assert isinstance(result, LlmResult), result
        return result.text

    def leave(self, program: str) -> None:
        """The program ends."""
        self.dispatcher.observe(ProgramEnded(program))
        self._talks.pop(program, None)

    def wait(self, asked: list[Generation]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: all(g.id in self.ends for g in asked), 30)

    def cancel(self, generation: Generation) -> None:
        self.dispatcher.cancel(generation, errors.Cancelled("enough"))

    def settle(self) -> None:
        """Return when the dispatcher has carried out all orders so far, and a step behind them."""
        for _ in range(2):
            self.dispatcher.embed([[1]]).result(30)

    def close(self) -> None:
        """End every program: the pool must be free again, and every call have ended once."""
        for program in [*self._talks]:
            self.leave(program)
        self.settle()
        engine, contexts = self.model.engine, self.dispatcher.contexts
        assert not self.dispatcher.view.tasks
        assert len(contexts.parking) == 0
        assert engine.kv_free() == engine.capabilities.kv_tokens
        assert contexts.tiers.host_bytes == 0
        assert contexts.tiers.disk_bytes == 0
        self.dispatcher.stop()
        assert set(self.ends.values()) <= {1}

    def _deliver(self, updates: list[Update]) -> None:
        with self._changed:
            for update in updates:
                if update.ended:
                    self.ends[update.generation.id] = self.ends.get(update.generation.id, 0) + 1
            self._changed.notify_all()


@pytest.fixture(scope="session")
def restless() -> Callable[[int], Restless]:
    return Restless


@pytest.fixture(scope="session")
def make_life() -> Callable[..., Life]:
    return Life


@pytest.fixture(scope="session")
def policies() -> dict[str, Callable[[], Policy]]:
    """Every policy of the registry, and the restless one."""
    found = Plugins().named("aios_kernel_policies")
    made: dict[str, Callable[[], Policy]] = {name: (lambda make=make: make({})) for name, make in found.items()}
    return {**made, "restless": Restless}
