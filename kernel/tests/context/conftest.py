"""Dispatchers over the demo model whose pool and swap space are as small as a test wants them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aios_kernel.chat.generation import Generation
from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.chat.service import ChatService
from aios_kernel.config import Config
from aios_kernel.context.space import SwapSpace
from aios_kernel.engine.load import load_model
from aios_kernel.process import Program
from aios_kernel.scheduler.dispatcher import Dispatcher, Update
from aios_kernel.scheduler.protocol import Policy
from aios_kernel.scheduler.round_robin import RoundRobin
from aios_kernel.syscalls import LlmChat, Message, Sampling

WORDS = ["river", "stone", "cloud", "ember", "maple", "tiger", "ocean", "piano"]


def calls(count: int) -> list[LlmChat]:
    """Different questions whose answers are long enough to be swapped out."""
    return [
        LlmChat(
            messages=[Message(role="user", content=f"remember that the {WORDS[number]} is number {number}")],
            schema={"type": "object", "properties": {"a": {"type": "string", "maxLength": 30}}, "required": ["a"]},
            sampling=Sampling(max_tokens=24, seed=number, temperature=0.9 if number % 2 else 0.0),
        )
        for number in range(count)
    ]


class Run:
    """A dispatcher, what came out of it, and how much the disk held at most."""

    def __init__(self, model: LoadedModel, policy: Policy, space: SwapSpace | None) -> None:
        self.model = model
        self.most_on_disk = 0
        self.ended: dict[int, Any] = {}
        self._changed = threading.Condition()
        self._service = ChatService(model, Config())
        self.dispatcher = Dispatcher(model, policy, self._deliver, space)

    def ask(self, call: LlmChat, program: str = "p") -> Generation:
        generation = self._service.prepare(self.dispatcher.next_id(), call, self.program(program))
        self.dispatcher.submit(generation)
        return generation

    def program(self, name: str) -> Program:
        return Program(id=name, agent="a", principal="me", group="g")

    def wait(self, asked: list[Generation]) -> list[Any]:
        with self._changed:
            assert self._changed.wait_for(lambda: all(g.id in self.ended for g in asked), 60)
        return [self.ended[generation.id] for generation in asked]

    def serve(self, wanted: list[LlmChat]) -> list[Any]:
        """Ask all at once; give their results and errors."""
        asked = [self.ask(call) for call in wanted]
        self.dispatcher.start()
        found = self.wait(asked)
        self.dispatcher.stop()
        return found

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def _deliver(self, updates: list[Update]) -> None:
        self.most_on_disk = max(self.most_on_disk, self.dispatcher.contexts.tiers.disk_bytes)
        with self._changed:
            for update in updates:
                if update.ended:
                    self.ended[update.generation.id] = update.generation.ended
            self._changed.notify_all()


@pytest.fixture
def swapping() -> Policy:
    return RoundRobin({"quantum": 4, "slots": 2, "always_swap": True})


@pytest.fixture
def make_run(swapping: Policy) -> Callable[..., Run]:
    torch.set_num_threads(1)

    def make(space: SwapSpace | None = None, *, kv_tokens: int = 4096, policy: Policy | None = None) -> Run:
        return Run(load_model("demo", device="cpu", kv_tokens=kv_tokens), policy or swapping, space)

    return make


@pytest.fixture
def questions() -> Callable[[int], list[LlmChat]]:
    return calls


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "swap"
