"""Several answers to one prompt: it is computed once, the others are forked, and each ends once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from aios_kernel import errors
from aios_kernel.chat.generation import Generation, combined
from aios_kernel.chat.service import ChatService
from aios_kernel.config import Config
from aios_kernel.context.space import SwapSpace
from aios_kernel.engine.fake import fake_model
from aios_kernel.engine.load import load_model
from aios_kernel.process import Program
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.scheduler.protocol import Arrived, Event, Policy
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling

TEXT = "Sing of rivers, oh machine, and of what they carry to the sea; qwx zzv 91 kkj"
VARIED = "[a-z]{2,40}"
"""The demo model is so sure of what it says that only a structure makes it say several things."""


class Listening(Fifo):
    """Fifo that remembers who came."""

    def __init__(self) -> None:
        super().__init__({})
        self.arrived: list[int] = []

    def observe(self, event: Event, now_s: float) -> None:
        if isinstance(event, Arrived):
            self.arrived.append(event.task)
        super().observe(event, now_s)


@pytest.fixture
def demo() -> Any:
    torch.set_num_threads(1)
    return load_model("demo", device="cpu", kv_tokens=2048)


@pytest.fixture
def start(make_life: Any, demo: Any) -> Iterator[Callable[..., Any]]:
    lives: list[Any] = []

    def make(policy: Policy | None = None, model: Any = None, space: SwapSpace | None = None) -> Any:
        lives.append(make_life(model or demo, policy or Listening(), space))
        return lives[-1]

    yield make
    for life in lives:
        life.close()


def ask(
    life: Any, n: int, program: str = "p", text: str = TEXT, regex: str | None = None, **sampling: Any
) -> list[Generation]:
    options = {"temperature": 2.0, "seed": 3, "max_tokens": 12, **sampling}
    call = LlmChat(messages=[Message("user", text)], sampling=Sampling(n=n, **options), regex=regex)
    service = ChatService(life.model, Config())
    generations = service.prepare_all(life.dispatcher.next_id, call, Program(program, "a", "me", "g"))
    life._talks.setdefault(program, [])
    for generation in generations:
        life.dispatcher.submit(generation)
    return generations


def alone(life: Any, generation: Generation) -> LlmResult:
    """The same answer as a call of its own."""
    service = ChatService(life.model, Config())
    sampling = Sampling(temperature=2.0, seed=generation.order.sampling.seed, max_tokens=12, logprobs=True)
    call = LlmChat(messages=[Message("user", TEXT)], sampling=sampling, regex=VARIED)
    single = service.prepare(life.dispatcher.next_id(), call, Program("alone", "a", "me", "g"))
    life._talks.setdefault("alone", [])
    life.dispatcher.submit(single)
    life.wait([single])
    assert isinstance(single.ended, LlmResult)
    return single.ended


def test_the_prompt_is_computed_once_and_the_answers_are_their_own(start: Any) -> None:
    life = start()
    generations = ask(life, 6, regex=VARIED, logprobs=True, top_logprobs=2)
    life.wait(generations)
    prompt = len(generations[0].order.prompt)
    result = combined(generations)
    assert result is not None
    answers = [result, *result.others]
    assert [g.computed - g.generated + 1 for g in generations] == [prompt, 1, 1, 1, 1, 1]
    assert [g.cached for g in generations] == [0, *[prompt - 1] * 5]
    assert len({answer.text for answer in answers}) > 2  # seeded apart
    assert result.usage.prompt_tokens == prompt
    assert result.usage.completion_tokens == sum(g.generated for g in generations)
    for generation, answer in zip(generations, answers, strict=True):
        expected = alone(life, generation)
        assert answer.text == expected.text
        assert [t.token for t in answer.logprobs] == [t.token for t in expected.logprobs]
        for one, other in zip(answer.logprobs, expected.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
            assert len(one.top) == 2


def test_policies_hear_of_the_others_when_they_can_be_forked(start: Any) -> None:
    policy = Listening()
    life = start(policy)
    generations = ask(life, 4)
    life.wait(generations)
    assert policy.arrived == [generation.id for generation in generations]


def test_prompt_scores_are_told_once(start: Any) -> None:
    generations = ask(life := start(), 3, prompt_logprobs=1)
    life.wait(generations)
    assert [len(g.prompt_logprobs) for g in generations] == [len(generations[0].order.prompt) - 1, 0, 0]
    assert generations[1].cached == len(generations[0].order.prompt) - 1


@pytest.mark.parametrize("max_tokens", [1, 2])
def test_answers_of_a_token_or_two(start: Any, max_tokens: int) -> None:
    """The first may have ended before the others come in; what it computed is still there."""
    life = start()
    generations = ask(life, 5, max_tokens=max_tokens)
    life.wait(generations)
    assert all(isinstance(g.ended, LlmResult) and g.generated <= max_tokens for g in generations)
    assert sum(g.computed - g.generated + 1 for g in generations) == len(generations[0].order.prompt) + 4


def test_every_policy_serves_them_and_a_small_pool_too(
    start: Any, policies: dict[str, Callable[[], Policy]], tmp_path: Any
) -> None:
    torch.set_num_threads(1)
    texts: dict[str, list[str]] = {}
    for name, make in policies.items():
        model = load_model("demo", device="cpu", kv_tokens=176)
        life = start(make(), model, SwapSpace(1 << 30, 0, None))
        generations = [*ask(life, 4), *ask(life, 3, "q", seed=9)]
        life.wait(generations)
        assert all(isinstance(g.ended, LlmResult) for g in generations), name
        texts[name] = [g.ended.text for g in generations if isinstance(g.ended, LlmResult)]
    assert len({tuple(text) for text in texts.values()}) == 1, texts


def test_they_are_cancelled_together_wherever_they_are(start: Any) -> None:
    life = start(model=fake_model(kv_tokens=4096))
    waiting = ask(life, 3, text="ponder", max_tokens=50_000)
    for generation in reversed(waiting):  # those that wait for the first, before it
        life.cancel(generation)
    life.wait(waiting)
    running = ask(life, 3, text="ponder", max_tokens=50_000)
    while not all(generation.generated for generation in running):
        pass
    for generation in running:
        life.cancel(generation)
    life.wait(running)
    assert all(isinstance(g.ended, errors.Cancelled) for g in [*waiting, *running])
    assert set(life.ends.values()) == {1}


def test_a_first_that_fails_leaves_the_others_to_themselves(start: Any, demo: Any) -> None:
    life = start()
    generations = ask(life, 3)
    life.cancel(generations[0])
    life.wait(generations)
    assert [isinstance(g.ended, LlmResult) for g in generations[1:]] == [True, True]


def test_a_new_policy_hears_only_of_those_that_may_come_in(start: Any) -> None:
    life = start(model=fake_model(kv_tokens=4096, step_us=2000))
    generations = ask(life, 3, text="think 40")
    fresh = Listening()
    life.dispatcher.set_policy(fresh)
    life.wait(generations)
    assert sorted(fresh.arrived) == sorted({*fresh.arrived})
    assert all(isinstance(g.ended, LlmResult) for g in generations)


def test_a_structure_binds_every_answer(start: Any) -> None:
    generations = ask(life := start(), 4, regex="[a-z]{3}-[0-9]{4}", max_tokens=40)
    life.wait(generations)
    answers = [g.ended.text for g in generations if isinstance(g.ended, LlmResult)]
    assert len(answers) == 4
    assert all(len(text) == 8 and text[:3].isalpha() and text[4:].isdigit() for text in answers), answers
