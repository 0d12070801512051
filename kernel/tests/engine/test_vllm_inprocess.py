"""vLLM in process: what the contract does not say of it. Its oracle is the same model in transformers."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.errors import ConfigError, SnapshotError, UnknownModel, Unsupported

pytest.importorskip("vllm", reason="needs vLLM in the kernel's environment: make test-vllm")
from aios_kernel.engine.vllm.inprocess import hooks

GREEDY = SamplingParams()
TIE = 1e-3


@pytest.fixture
def engine(make_vllm: Any) -> Any:
    return make_vllm(4096)


@pytest.fixture(scope="module")
def reference(vllm_core: Any) -> Any:
    _, folder, _ = vllm_core
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def finish(engine: Any, contexts: list[Any], n_tokens: int, chunk: int = 64) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in contexts]
    while any(len(tokens) < n_tokens for tokens in out):
        live = [row for row, tokens in enumerate(out) if len(tokens) < n_tokens]
        for row, output in zip(live, engine.step([(contexts[row], chunk) for row in live]), strict=True):
            assert output.error is None
            out[row] += [output.token] if output.token is not None else []
    return out


def check(model: Any, prompt: list[int], answer: list[int]) -> None:
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0]
    for place, token in enumerate(answer, start=len(prompt) - 1):
        assert logits[place].max() - logits[place, token] <= TIE


def test_a_batch_of_mixed_lengths_says_what_transformers_says(engine: Any, reference: Any, prompt: Any) -> None:
    prompts = [prompt(length, seed=length) for length in (1, 5, 40, 200)]
    contexts = [engine.open(tokens, sampling=GREEDY) for tokens in prompts]
    for tokens, answer in zip(prompts, finish(engine, contexts, 20, chunk=33), strict=True):
        check(reference, tokens, answer)


def test_only_those_of_the_plan_run(engine: Any, prompt: Any) -> None:
    first, second = (engine.open(prompt(40, seed), sampling=GREEDY) for seed in (1, 2))
    finish(engine, [first, second], 3)
    before = (list(second.tokens), second.computed)
    finish(engine, [first], 5)
    assert (second.tokens, second.computed) == before
    assert len(first.tokens) == 48


def test_what_was_computed_is_found_again(engine: Any, reference: Any, prompt: Any) -> None:
    tokens = prompt(100)
    first = engine.open(tokens, sampling=GREEDY)
    (answer,) = finish(engine, [first], 40)
    engine.release(first)
    turn = [*tokens, *answer, 1, 2, 3]
    second = engine.open(turn, sampling=GREEDY)
    (output,) = engine.step([(second, 1000)])
    assert (second.cached, output.computed) == (128, 15)  # generated tokens included
    check(reference, turn, [output.token])
    other = engine.open(turn, sampling=GREEDY, salt=b"another")
    engine.step([(other, 1000)])
    assert other.cached == 0


def test_what_is_appended_goes_on_from_the_cache(engine: Any, reference: Any, prompt: Any) -> None:
    context = engine.open(prompt(100), sampling=GREEDY)
    finish(engine, [context], 3)
    engine.append(context, prompt(20, seed=3))
    said = list(context.tokens)
    (output,) = engine.step([(context, 1000)])
    assert output.computed == len(said) - 96  # its full blocks were found
    check(reference, said, [output.token])


def test_a_snapshot_is_exact_and_holds_generated_tokens(engine: Any, prompt: Any) -> None:
    sampled = SamplingParams(temperature=0.9, seed=5, repetition_penalty=1.2)
    (expected,) = finish(engine, [engine.open(prompt(70), sampling=sampled)], 60)
    context = engine.open(prompt(70), sampling=sampled, salt=b"other")
    (begun,) = finish(engine, [context], 40)
    snapshot = engine.snapshot(context)
    other = [engine.open(prompt(200, seed), sampling=GREEDY) for seed in range(15)]
    finish(engine, other, 2)  # other prompts' KV takes the place
    restored = engine.restore(snapshot)
    assert (restored.computed, restored.pending) == (109, 1)
    (output,) = engine.step([(restored, 1)])
    assert output.computed == 1
    again = engine.snapshot(restored)
    for one, two in zip(snapshot.data, again.data, strict=True):  # four blocks of 32 tokens
        assert torch.equal(one[:3], two[:3])
        assert 0 < int((one[3] != two[3]).sum()) <= one[3].numel() // 32  # no more than the new token is
    rest = finish(engine, [engine.restore(again)], 19)[0]
    assert [*begun, output.token, *rest] == expected
    with pytest.raises(Unsupported, match="stay in memory"):
        snapshot.save(Path("nowhere"))
    snapshot.fingerprint = "another"
    with pytest.raises(SnapshotError):
        engine.restore(snapshot)


def test_company_changes_nothing_of_what_is_drawn(engine: Any, prompt: Any) -> None:
    warm = SamplingParams(temperature=1.0, top_k=20, seed=3)
    (alone,) = finish(engine, [engine.open(prompt(30), sampling=warm)], 15)
    contexts = [engine.open(prompt(30), sampling=warm)]
    contexts += [
        engine.open(prompt(50, seed), sampling=SamplingParams(temperature=1.0, seed=seed)) for seed in range(5)
    ]
    assert finish(engine, contexts, 15, chunk=11)[0] == alone


def test_adapters_are_as_merged_weights(engine: Any, vllm_core: Any, reference: Any, prompt: Any) -> None:
    _, _, adapters = vllm_core
    tokens = prompt(40)
    order = ["one", None, "two", "one"]
    contexts = [engine.open(tokens, sampling=GREEDY, lora=name) for name in order]
    answers = finish(engine, contexts, 10, chunk=17)
    for name, answer in zip(order, answers, strict=True):
        check(merged(reference, adapters[name]) if name else reference, tokens, answer)
    free = engine.kv_free()
    for context in contexts:
        engine.release(context)
    assert engine.kv_free() > free
    assert len({tuple(answer) for answer in answers}) == 3
    with pytest.raises(UnknownModel, match='no LoRA adapter "three"'):
        engine.open(tokens, sampling=GREEDY, lora="three")
    with pytest.raises(ConfigError, match="room for fewer"):
        engine.load_lora("three", str(adapters["one"]))


def merged(model: Any, adapter: Path) -> Any:
    model, tensors = copy.deepcopy(model), load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, a in tensors.items():
            if ".lora_A." in name:
                module = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
                module.weight += tensors[name.replace("lora_A", "lora_B")] @ a
    return model


@pytest.mark.parametrize("hook", hooks.HOOKS)
def test_a_hook_that_moved_is_named(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks.check()
    module, _, path = hook.partition(":")
    owner, _, method = path.partition(".")
    monkeypatch.setattr(getattr(importlib.import_module(module), owner), method, lambda _self, other: other)
    with pytest.raises(ConfigError, match=f"{method}: takes other, not"):
        hooks.check()
    monkeypatch.delattr(importlib.import_module(module), owner)
    assert [line for line in hooks.moved() if line.startswith(hook)]


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "installed", lambda: "0.33.0")
    with pytest.raises(
        ConfigError, match=r"0\.33\.0 is installed; in process the kernel relies on the inside of 0\.32\.0"
    ):
        hooks.check()
    monkeypatch.setattr(hooks, "installed", lambda: None)
    with pytest.raises(ConfigError, match="not installed"):
        hooks.check()
