"""Round robin's snapshots change no token: the torch engine alone, under fifo, and swapped out every few tokens."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from aios_kernel.chat.codec import TransformersCodec
from aios_kernel.chat.generation import TIE_MARGIN, Generation
from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.chat.service import ChatService
from aios_kernel.config import Config
from aios_kernel.engine.protocol import SamplingParams, StepOutput
from aios_kernel.engine.torch import TorchEngine
from aios_kernel.process import Program
from aios_kernel.scheduler.dispatcher import Dispatcher, Update
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.scheduler.protocol import Policy
from aios_kernel.scheduler.round_robin import RoundRobin
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["alpha", "beta"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
        "word": {"type": "string", "maxLength": 6},
    },
    "required": ["kind", "tags", "word"],
    "additionalProperties": False,
}
GREEDY = Sampling(temperature=0.0, max_tokens=40)
RANDOM = Sampling(temperature=0.9, top_p=0.95, seed=11, max_tokens=40)
LONG_ENOUGH = {"max_tokens": 200}


def chat(text: str, sampling: Sampling, schema: dict[str, Any] | None = None) -> LlmChat:
    return LlmChat(messages=[Message("user", text)], sampling=sampling, schema=schema)


CALLS = [
    chat("greedy, short", GREEDY),
    chat("greedy with a longer prompt, of more than one block of keys and values. " * 2, GREEDY),
    chat("sampled, short", RANDOM),
    chat("sampled with a longer prompt, of more than one block of keys and values. " * 2, RANDOM),
    chat("an object, greedy", Sampling(temperature=0.0, **LONG_ENOUGH), SCHEMA),
    chat("an object, sampled", Sampling(temperature=0.8, seed=5, **LONG_ENOUGH), SCHEMA),
]


@pytest.fixture(scope="module")
def codec() -> TransformersCodec:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<|start|>", "<|end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = "{% for m in messages %}<|start|>{{ m['content'] }}{% endfor %}<|start|>"
    return TransformersCodec(tokenizer, GenerationConfig(), window=1024, width=len(tokenizer))


@pytest.fixture(scope="module")
def make_model(codec: TransformersCodec) -> Callable[[int], LoadedModel]:
    torch.set_num_threads(1)

    def make(kv_tokens: int) -> LoadedModel:
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=258,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
        engine = TorchEngine(LlamaForCausalLM(config).eval(), kv_tokens=kv_tokens)
        return LoadedModel("tiny", engine, codec)

    return make


class Run:
    """Serves calls on one engine under a policy and keeps the tokens and margins of each."""

    def __init__(self, model: LoadedModel, policy: Policy) -> None:
        self.margins: dict[tuple[int, ...], list[float]] = {}
        self.tokens: dict[tuple[int, ...], list[int]] = {}
        self._ended: dict[int, LlmResult] = {}
        self._changed = threading.Condition()
        self._service = ChatService(model, Config())
        self._step, self._open = model.engine.step, model.engine.open
        model.engine.step = self._watched  # type: ignore[method-assign]
        model.engine.open = self._with_margins  # type: ignore[method-assign]
        self._model = model
        self.dispatcher = Dispatcher(model, policy, self._deliver)

    def serve(self, calls: list[LlmChat]) -> list[tuple[list[int], LlmResult]]:
        program = Program(id="p", agent="a", principal="me", group="g")
        asked = [self._service.prepare(self.dispatcher.next_id(), call, program) for call in calls]
        for generation in asked:
            self.dispatcher.submit(generation)
        self.dispatcher.start()
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._ended) == len(asked), 60)
        free, total = self._model.engine.kv_free(), self._model.engine.capabilities.kv_tokens
        self.dispatcher.stop()
        assert free == total
        return [(self.tokens[self._key(generation)], self._ended[generation.id]) for generation in asked]

    def _key(self, generation: Generation) -> tuple[int, ...]:
        return tuple(generation.order.prompt)

    def _with_margins(self, tokens: Any, *, sampling: SamplingParams, **options: Any) -> Any:
        return self._open(tokens, sampling=dataclasses.replace(sampling, margin=True), **options)

    def _watched(self, plan: Any) -> list[StepOutput]:
        outputs = self._step(plan)
        for output in outputs:
            if output.token is not None:
                key = tuple(output.context.tokens[: output.context.prompt])  # type: ignore[attr-defined]
                self.tokens.setdefault(key, []).append(output.token)
                self.margins.setdefault(key, []).append(output.margin)
        return outputs

    def _deliver(self, updates: list[Update]) -> None:
        with self._changed:
            for update in updates:
                if update.ended:
                    assert isinstance(update.generation.ended, LlmResult), update.generation.ended
                    self._ended[update.generation.id] = update.generation.ended
            self._changed.notify_all()


def swapping() -> RoundRobin:
    return RoundRobin({"quantum": 3, "slots": 2, "always_swap": True})


@pytest.fixture(scope="module")
def alone(make_model: Callable[[int], LoadedModel]) -> list[tuple[list[int], list[float], str]]:
    """Tokens, margins and text of each call without any competition."""
    found: list[tuple[list[int], list[float], str]] = []
    for call in CALLS:
        run = Run(make_model(4096), Fifo({}))
        ((tokens, result),) = run.serve([call])
        found.append((tokens, next(iter(run.margins.values())), result.text))
    return found


@pytest.mark.parametrize("policy", [lambda: Fifo({}), swapping], ids=["fifo", "round_robin"])
@pytest.mark.parametrize("kv_tokens", [4096, 288], ids=["room for all", "room for one or two"])
def test_every_token_is_as_without_competition(
    alone: list[tuple[list[int], list[float], str]],
    make_model: Callable[[int], LoadedModel],
    policy: Callable[[], Policy],
    kv_tokens: int,
) -> None:
    run = Run(make_model(kv_tokens), policy())
    answers = run.serve(CALLS)
    for call, (tokens, _), (expected, margins, _) in zip(CALLS, answers, alone, strict=True):
        pairs = enumerate(zip(tokens, expected, strict=False))
        first = next((place for place, (mine, theirs) in pairs if mine != theirs), None)
        if first is None:
            assert tokens == expected
        else:  # a tie: rounding differs with the shape of the batch
            assert call.sampling.temperature == 0.0
            assert margins[first] <= TIE_MARGIN
    if isinstance(run.dispatcher.policy, RoundRobin):
        assert run.dispatcher.contexts.snapshots > 2 * len(CALLS)


def test_the_answers_are_worth_comparing(alone: list[tuple[list[int], list[float], str]]) -> None:
    """Long enough to be swapped out several times; under the schema valid JSON; sampled ones not the greedy ones."""
    for tokens, _, text in alone[4:]:
        assert len(tokens) > 9
        assert set(json.loads(text)) == {"kind", "tags", "word"}
    assert all(len(tokens) > 9 for tokens, _, _ in alone)
    assert len({text for _, _, text in alone}) == len(CALLS)
