"""What a call may ask of the sampler, what it gets by default, and several answers to one prompt."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.chat.sampling import answer_seed, check, resolve
from aios_kernel.chat.service import ChatService
from aios_kernel.config import Config
from aios_kernel.engine.fake import fake_model
from aios_kernel.engine.protocol import Capabilities, SamplingParams
from aios_kernel.engine.torch import TorchEngine
from aios_kernel.errors import InvalidRequest, Unsupported
from aios_kernel.process import Program
from aios_kernel.scheduler.dispatcher import Dispatcher, Update
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling

PROGRAM = Program(id="p", agent="a", principal="me", group="g")
CAPABILITIES = Capabilities(vocab=100, prompt_logprobs=True)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
        ({"logit_bias": {3: 101.0}}, "logit_bias of token 3"),
        ({"logit_bias": {100: 1.0}}, "token 100"),
        ({"logit_bias": {-1: 1.0}}, "token -1"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias"),
        ({"n": 0}, "n is 0"),
        ({"n": 65}, "n is 65"),
        ({"n": 2, "forced": "x"}, "forced"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 1 << 63}, "seed"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(asked: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named) as caught:
        check(Sampling(**asked), CAPABILITIES)
    assert caught.value.fix


def test_the_ends_of_the_ranges_are_served() -> None:
    check(
        Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=1.0, n=64, logit_bias={0: -100.0, 99: 100.0}), CAPABILITIES
    )
    check(Sampling(presence_penalty=-2.0, frequency_penalty=2.0, prompt_logprobs=0, seed=-(1 << 63)), CAPABILITIES)
    check(Sampling(logit_bias={10**6: 1.0}), Capabilities())  # an engine that does not tell its vocabulary
    with pytest.raises(Unsupported, match="prompt_logprobs"):
        check(Sampling(prompt_logprobs=1), Capabilities())


def test_the_models_defaults_hold_where_nothing_is_asked() -> None:
    defaults = SamplingParams(temperature=0.7, top_p=0.8, top_k=20, min_p=0.05, repetition_penalty=1.1)
    params = resolve(Sampling(seed=4), defaults, ())
    assert params == SamplingParams(0.7, 0.8, 20, 0.05, repetition_penalty=1.1, seed=4)
    asked = Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, seed=4)
    assert resolve(asked, defaults, ()) == SamplingParams(seed=4)
    assert resolve(asked, defaults, ()).plain
    assert not params.plain
    assert resolve(Sampling(logit_bias={5: 1.0}, seed=4), defaults, ()).logit_bias == ((5, 1.0),)
    assert resolve(Sampling(), defaults, ()).seed != resolve(Sampling(), defaults, ()).seed


def test_the_generation_settings_give_defaults(make_codec: Any) -> None:
    own = {"min_p": 0.05, "repetition_penalty": 1.2}
    assert make_codec(do_sample=True, **own).defaults == SamplingParams(
        temperature=1.0, top_k=make_codec(do_sample=True).defaults.top_k, min_p=0.05, repetition_penalty=1.2
    )
    assert make_codec(**own).defaults == SamplingParams(
        repetition_penalty=1.2
    )  # penalties hold for greedy decoding too


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 63))
def test_every_answer_has_a_seed_of_its_own(seed: int, index: int) -> None:
    seeds = [answer_seed(seed, other) for other in range(64)]
    assert len(set(seeds)) == 64
    assert answer_seed(seed, 0) == seed
    assert -(1 << 63) <= seeds[index] < 1 << 63


def test_a_cold_temperature_is_greedy() -> None:
    assert resolve(Sampling(temperature=1e-9), SamplingParams(), ()).temperature == 0.0


@pytest.mark.parametrize("schema", [{"type": "object"}, None])
def test_every_answer_has_its_own_state(schema: Any, codecs: Any) -> None:
    model = LoadedModel("m", fake_model().engine, codecs())
    call = LlmChat(
        messages=[Message("user", "hi")], schema=schema, sampling=Sampling(n=3, seed=5, prompt_logprobs=None)
    )
    made = ChatService(model, Config()).prepare_all(itertools.count(7).__next__, call, PROGRAM)
    assert [generation.id for generation in made] == [7, 8, 9]
    assert [generation.index for generation in made] == [0, 1, 2]
    assert [generation.order.sampling.seed for generation in made] == [5, 6, 7]
    assert len({id(generation.stream) for generation in made}) == 3
    assert len({id(generation.order.grammar) for generation in made}) == (3 if schema else 1)
    assert len({tuple(generation.order.prompt) for generation in made}) == 1


class Served:
    """Answers of a small random model through service and dispatcher."""

    def __init__(self, codec: Any) -> None:
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.3, bos_token_id=None,
            eos_token_id=None,
        )  # fmt: skip
        self.model = LoadedModel("m", TorchEngine(LlamaForCausalLM(config).eval(), kv_tokens=4096), codec)
        self.ended: dict[int, Any] = {}
        self._changed = threading.Condition()
        self.dispatcher = Dispatcher(self.model, Fifo({}), self._deliver)
        self.dispatcher.start()

    def answers(self, sampling: Sampling, text: str = "hi") -> list[LlmResult]:
        call = LlmChat(messages=[Message("user", text)], sampling=sampling)
        made = ChatService(self.model, Config()).prepare_all(self.dispatcher.next_id, call, PROGRAM)
        for generation in made:
            self.dispatcher.submit(generation)
        with self._changed:
            assert self._changed.wait_for(lambda: all(generation.id in self.ended for generation in made), 30)
        return [self.ended[generation.id] for generation in made]

    def _deliver(self, updates: list[Update]) -> None:
        with self._changed:
            self.ended |= {update.generation.id: update.generation.ended for update in updates if update.ended}
            self._changed.notify_all()


@pytest.fixture
def served(codecs: Any) -> Any:
    made = Served(codecs())
    yield made
    made.dispatcher.stop()


def test_several_answers_share_the_prompt(served: Served) -> None:
    text = "a prompt of several blocks of keys and values, which is computed once for all the answers. " * 3
    wanted = Sampling(temperature=1.0, seed=11, max_tokens=12, n=4)
    results = served.answers(wanted, text)
    prompt = results[0].usage.prompt_tokens
    computed = served.dispatcher.tokens_computed
    assert computed <= prompt + 3 * 16 + 4 * 12
    assert len({result.text for result in results}) == 4
    alone = [served.answers(Sampling(temperature=1.0, seed=11 + n, max_tokens=12), text)[0] for n in range(4)]
    assert [result.text for result in alone] == [result.text for result in results]


def test_prompt_logprobs_reach_the_result(served: Served) -> None:
    first, second = served.answers(Sampling(max_tokens=3, n=2, prompt_logprobs=2))
    assert len(first.prompt_logprobs) == first.usage.prompt_tokens - 1
    assert all(len(entry.top) == 2 and entry.logprob <= 0 for entry in first.prompt_logprobs)
    text = "".join(entry.token for entry in first.prompt_logprobs)
    assert "hi" in text
    assert second.prompt_logprobs == []
