"""Whatever goes wrong for one call on the real engine ends that call with a typed error, and no other."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from aios_kernel.chat.generation import Generation
from aios_kernel.context.space import SwapSpace
from aios_kernel.errors import Cancelled, EngineError, InvalidSchema
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling

FAULTS: dict[str, type[Exception]] = {"memory": MemoryError, "runtime": RuntimeError}
BAD = "remember that the zebra is number 99"


class BrokenGrammar:
    """Goes wrong at its third token."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.taken = 0

    def fill_mask(self, mask: Any, row: int) -> None:
        """All tokens are allowed."""

    def accept(self, token: int) -> None:
        self.taken += 1
        if self.way == "refuses" and self.taken >= 3:
            raise ValueError("it is not allowed here")
        if self.way == "breaks" and self.taken >= 3:
            raise RuntimeError("a broken grammar")

    def accept_later(self, token: int) -> None:
        self.accept(token)

    def finished(self) -> bool:
        return False

    def fork(self) -> BrokenGrammar:
        copy = BrokenGrammar(self.way)
        copy.taken = self.taken
        return copy

    def dump(self) -> str:
        raise NotADumpError


class NotADumpError(Exception):
    """This grammar cannot be written down."""


def spoil_forward(run: Any, fault: str, bad: Generation) -> None:
    """Make every forward fail that computes the end of the bad call's prompt."""
    engine = run.model.engine
    forward = engine._runner.forward
    ids = torch.tensor(bad.order.prompt[-8:])

    def spoilt(packed: torch.Tensor, *rest: Any) -> torch.Tensor:
        found = any(torch.equal(packed[at : at + 8], ids) for at in range(len(packed) - 7))
        if found:
            raise FAULTS[fault](f"{fault}, as the test wants it")
        return forward(packed, *rest)

    engine._runner.forward = spoilt


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_forward_that_raises_for_one_call(make_run: Any, questions: Any, fault: str) -> None:
    expected = [result.text for result in make_run().serve(questions(4))]
    run = make_run()
    others = [run.ask(call) for call in questions(4)]
    bad = run.ask(LlmChat(messages=[Message(role="user", content=BAD)], sampling=Sampling(max_tokens=8)), "q")
    spoil_forward(run, fault, bad)
    run.dispatcher.start()
    results = run.wait(others)
    (failed,) = run.wait([bad])
    free, total = run.model.engine.kv_free(), run.model.engine.capabilities.kv_tokens
    run.dispatcher.stop()
    assert isinstance(failed, EngineError)
    assert "as the test wants it" in str(failed)
    assert [result.text for result in results] == expected
    assert free == total


@pytest.mark.parametrize("way", ["breaks", "refuses", "no dump"])
def test_a_grammar_that_breaks_in_the_middle(make_run: Any, questions: Any, folder: Any, way: str) -> None:
    expected = [result.text for result in make_run().serve(questions(4))]
    run = make_run(SwapSpace(2 << 20, 1 << 30, folder))
    others = [run.ask(call) for call in questions(4)]
    bad = run._service.prepare(
        run.dispatcher.next_id(),
        LlmChat(messages=[Message(role="user", content=BAD)], sampling=Sampling(max_tokens=30)),
        run.program("q"),
    )
    object.__setattr__(bad.order, "grammar", BrokenGrammar(way))
    run.dispatcher.submit(bad)
    run.dispatcher.start()
    results = run.wait(others)
    (ended,) = run.wait([bad])
    run.dispatcher.stop()
    if way == "no dump":  # it stays in host memory, where it needs none
        assert isinstance(ended, LlmResult)
    else:
        assert isinstance(ended, EngineError)
        assert "grammar" in str(ended)
    assert [result.text for result in results] == expected


def test_a_grammar_that_cannot_be_compiled_never_reaches_the_engine(make_run: Any) -> None:
    run = make_run()
    with pytest.raises(InvalidSchema) as caught:
        run.ask(LlmChat(messages=[Message(role="user", content="hi")], schema={"type": "no such type"}))
    assert caught.value.fix
    run.dispatcher.start()
    run.dispatcher.stop()


@pytest.mark.parametrize("seed", range(3))
def test_aborts_at_any_moment(make_run: Any, questions: Any, folder: Any, seed: int) -> None:
    """Queued, prefilling, decoding, swapped out, on its way to the disk and back: whatever the moment finds."""
    chooser = random.Random(seed)
    run = make_run(SwapSpace(2 << 20, 1 << 30, folder))
    run.dispatcher.start()
    asked = [run.ask(call) for _ in range(3) for call in questions(8)]
    for generation in chooser.sample(asked, 16):
        before = run.dispatcher.tokens_computed
        run.until(lambda before=before: run.dispatcher.tokens_computed >= before + 8 or len(run.ended) == len(asked))
        run.dispatcher.cancel(generation, Cancelled("the test wants it"))
    results = run.wait(asked)
    assert all(isinstance(result, LlmResult | Cancelled) for result in results)
    assert {type(result) for result in results} == {LlmResult, Cancelled}
    free, total = run.model.engine.kv_free(), run.model.engine.capabilities.kv_tokens
    tiers = run.dispatcher.contexts.tiers
    run.dispatcher.stop()
    assert (free, tiers.host_bytes) == (total, 0)
    assert not folder.exists()
