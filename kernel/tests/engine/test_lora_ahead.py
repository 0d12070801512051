"""An adapter comes into the pool when a call for it is queued, and a call that finds no room for its adapter waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.chat.service import ChatService
from aios_kernel.config import Config
from aios_kernel.engine.load import DEMO, load_model
from aios_kernel.errors import OutOfMemory, UnknownModel
from aios_kernel.process import Program
from aios_kernel.scheduler.dispatcher import Dispatcher, Update
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.scheduler.protocol import Plan, View
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling

NAMES = ("french", "german")


class Idle(Fifo):
    """Admits nobody."""

    def decide(self, view: View, now_s: float) -> Plan:
        return Plan(patient=True)


class Run:
    """A dispatcher, and the results of the calls that it was given, by number."""

    def __init__(self, model: LoadedModel, policy: Fifo) -> None:
        self.results: dict[int, Any] = {}
        self._changed = threading.Condition()
        self._service = ChatService(model, Config())
        self._dispatcher = Dispatcher(model, policy, self._deliver)

    def __enter__(self) -> Run:
        self._dispatcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._dispatcher.stop()

    def submit(self, text: str, lora: str | None) -> int:
        call = LlmChat(messages=[Message("user", text)], sampling=Sampling(temperature=0.0, max_tokens=20), lora=lora)
        program = Program(id=f"p{lora}", agent="a", principal="me", group="g")
        generation = self._service.prepare(self._dispatcher.next_id(), call, program)
        self._dispatcher.submit(generation)
        return generation.id

    def wait(self, numbers: list[int]) -> list[Any]:
        with self._changed:
            assert self._changed.wait_for(lambda: set(numbers) <= self.results.keys(), 60)
        return [self.results[number] for number in numbers]

    def _deliver(self, updates: list[Update]) -> None:
        with self._changed:
            self.results |= {update.generation.id: update.generation.ended for update in updates if update.ended}
            self._changed.notify_all()


@pytest.fixture
def make(lora_writer: Callable[..., Path], tmp_path: Path) -> Callable[[int], LoadedModel]:
    def load(kv_tokens: int) -> LoadedModel:
        model = load_model("demo", device="cpu", kv_tokens=kv_tokens, threads=1)
        engine: Any = model.engine
        weights = AutoModelForCausalLM.from_pretrained(DEMO)
        for rank, name in enumerate(NAMES, 4):
            engine.load_lora(name, str(lora_writer(tmp_path / name, weights, rank=rank, seed=rank)))
        return model

    return load


def test_an_adapter_comes_when_its_call_is_queued(make: Callable[[int], LoadedModel]) -> None:
    model = make(4096)
    shelf = model.engine._adapters.shelf  # type: ignore[attr-defined]
    assert not any(map(shelf.resident, NAMES))
    with Run(model, Idle({})) as run:
        run.submit("hello", "german")
        ends_at = time.monotonic() + 30
        while not shelf.resident("german"):
            assert time.monotonic() < ends_at
            time.sleep(0.005)
        assert not shelf.resident("french")
        assert model.engine.kv_free() == 4096  # it still gives way to whoever runs


def test_calls_wait_for_the_room_of_their_adapters(make: Callable[[int], LoadedModel]) -> None:
    wide = make(16_384)
    loras, sizes = [None, *NAMES] * 4, wide.engine.loras()  # type: ignore[attr-defined]
    with Run(wide, Fifo({})) as run:
        expected = run.wait([run.submit(f"question {number}", lora) for number, lora in enumerate(loras)])
    room = max(sizes.values()) + 256
    with Run(make(room), Fifo({})) as run:
        found = run.wait([run.submit(f"question {number}", lora) for number, lora in enumerate(loras)])
    for one, other in zip(expected, found, strict=True):
        assert isinstance(one, LlmResult)
        assert isinstance(other, LlmResult)
        assert one.text == other.text


def test_what_does_not_fit_beside_its_adapter_is_refused(make: Callable[[int], LoadedModel]) -> None:
    sizes = make(16_384).engine.loras()  # type: ignore[attr-defined]
    with Run(make(sizes["german"] + 48), Fifo({})) as run:
        with pytest.raises(OutOfMemory, match="beside the adapter"):
            run.submit("word " * 60, "german")
        with pytest.raises(UnknownModel):
            run.submit("hello", "spanish")
        assert isinstance(run.wait([run.submit("hi", "german")])[0], LlmResult)
