"""Contexts with adapters say what `generate` says of the model that PEFT has merged them into; each in any company.

With the compiled products and without them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from aios_kernel.engine.protocol import KvExhausted, SamplingParams
from aios_kernel.engine.torch import TorchEngine
from aios_kernel.errors import OutOfMemory, SnapshotError

Prompt = Callable[..., list[int]]
pytestmark = [
    pytest.mark.parametrize("native", [True, False], ids=["native", "plain"]),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),  # in fused layers
]
ALL = r".*\.(q|k|v|o|gate|up|down|qkv|gate_up)_proj"
ATTENTION = r".*\.(q|k|v|o)_proj"
KINDS: dict[str, dict[str, Any]] = {
    "small": {"r": 4, "lora_alpha": 8, "target_modules": ALL},
    "odd": {"r": 5, "lora_alpha": 3, "target_modules": ATTENTION},
    "stable": {"r": 16, "lora_alpha": 8, "target_modules": ALL, "use_rslora": True},
    "mixed": {
        "r": 8,
        "lora_alpha": 8,
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.(up|down)_proj": 20},
        "alpha_pattern": {"v_proj": 32, "layers.2.self_attn.o_proj": 1},
    },
}
FAMILIES = ["llama", "qwen2", "gemma2", "phi3", "mixtral"]


class Tuned:
    """A family's model, adapters of it by name, and what the merged models say."""

    def __init__(self, family: str, oracles: Callable[[str], Any], folder: Path) -> None:
        plain = oracles(family)
        self.family, self.oracles = family, {None: plain}
        self.folders: dict[str, str] = {}
        for seed, (name, kind) in enumerate(KINDS.items()):
            self.folders[name] = str(folder / name)
            _write(plain.model, self.folders[name], kind, seed)
            merged: Any = PeftModel.from_pretrained(copy.deepcopy(plain.model), self.folders[name])
            self.oracles[name] = type(plain)(merged.merge_and_unload())

    def load(self, engine: Any) -> Any:
        for name, folder in self.folders.items():
            engine.load_lora(name, folder)
        return engine


def _write(model: Any, folder: str, kind: dict[str, Any], seed: int) -> None:
    if "mixtral" in type(model).__name__.lower():
        kind = kind | {"target_modules": ATTENTION, "rank_pattern": {"q_proj": 2} if "rank_pattern" in kind else {}}
    torch.manual_seed(seed)
    tuned: Any = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", **kind))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    tuned.save_pretrained(folder)


@pytest.fixture(scope="module")
def tune(oracles: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tuned]:
    known: dict[str, Tuned] = {}

    def make(family: str = "llama") -> Tuned:
        if family not in known:
            known[family] = Tuned(family, oracles, tmp_path_factory.mktemp(family))
        return known[family]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_every_context_says_what_its_merged_model_says(
    tune: Any, make_engine: Any, drive: Any, prompt: Prompt, family: str
) -> None:
    """All ranks and no adapter in one batch, prompts of several lengths, in chunks of random sizes."""
    tuned = tune(family)
    driver = drive(tuned.load(make_engine(family)))
    names = [None, *KINDS, "small", None, *KINDS]
    prompts = [prompt(length, seed=length) for length in (3, 16, 41, 64, 100, 7, 20, 33, 50, 18, 5)]
    contexts = [driver.open(tokens, lora=name) for tokens, name in zip(prompts, names, strict=True)]
    answers = driver.answers(contexts, [12] * len(contexts), chunk=24)
    for tokens, name, answer in zip(prompts, names, answers, strict=True):
        tuned.oracles[name].check(tokens, answer)
    assert answers[0] != tuned.oracles["small"].greedy(prompts[0], 12)


def test_an_adapter_stays_through_forks_snapshots_and_appended_tokens(
    tune: Any, make_engine: Any, drive: Any, prompt: Prompt
) -> None:
    tuned, chooser = tune(), random.Random(1)
    driver = drive(tuned.load(make_engine()))
    engine = driver.engine
    for name in [*KINDS, None]:
        context, answer = driver.open(prompt(40), lora=name), []
        while len(answer) < 10:
            (output,) = engine.step([(context, chooser.randint(1, 30))])
            answer += [output.token] if output.token is not None else []
            if chooser.random() < 0.5:
                context = engine.restore(engine.snapshot(context))
        tuned.oracles[name].check(prompt(40), answer)
        twin, anew = engine.fork(context), engine.fork(context, at=40)
        engine.release(context)
        said = list(twin.tokens)
        rest, again = driver.answers([twin, anew], [6, 10])
        tuned.oracles[name].check(said, rest)
        tuned.oracles[name].check(prompt(40), again)
        engine.append(twin, prompt(9))
        said = list(twin.tokens)
        tuned.oracles[name].check(said, driver.answer(twin, 6))
        engine.release(twin)
        engine.release(anew)
    assert engine.kv_free() == engine.capabilities.kv_tokens


def test_equal_prefixes_are_shared_under_one_adapter_only(
    tune: Any, make_engine: Any, drive: Any, prompt: Prompt
) -> None:
    """In one step as well as later, whole blocks and beginnings of blocks."""
    tuned = tune()
    engine = tuned.load(make_engine())
    driver = drive(engine)
    engine.load_lora("copy", tuned.folders["small"])
    names = ["small", "stable", None, "small", "copy"]
    contexts = [engine.open(prompt(64), sampling=SamplingParams(), lora=name) for name in names]
    engine.step([(context, 64) for context in contexts])
    assert [context.cached for context in contexts] == [0, 0, 0, 48, 48]  # equal content is one adapter
    for name, answer in zip(names, driver.answers(contexts, [8] * 5), strict=True):
        tuned.oracles[name if name != "copy" else "small"].check(
            [*prompt(64), *contexts[names.index(name)].tokens[64:65]], answer
        )
    for context in contexts:
        engine.release(context)
    longer = [*prompt(64), 1, 2, 3]
    assert min(engine.match(longer, lora="small"), engine.match(longer)) >= 64
    assert engine.match(longer, lora="mixed") == 0
    assert engine.match(longer, lora="small", salt=b"other") == 0


def test_a_snapshot_continues_with_the_very_same_adapter(
    tune: Any, make_engine: Any, drive: Any, prompt: Prompt, tmp_path: Path
) -> None:
    tuned = tune()
    engine = tuned.load(make_engine())
    context = engine.open(prompt(30), sampling=SamplingParams(), lora="mixed")
    driver = drive(engine)
    begun = driver.answer(context, 4)
    snapshot = engine.snapshot(context)
    assert snapshot.fingerprint != engine.fingerprint
    snapshot.save(tmp_path / "context")
    other = tuned.load(make_engine())
    restored = other.restore(other.load_snapshot(tmp_path / "context"))
    tuned.oracles["mixed"].check(prompt(30), begun + drive(other).answer(restored, 6))
    other.release(restored)
    other.unload_lora("mixed")
    with pytest.raises(SnapshotError, match='"mixed" is loaded'):
        other.load_snapshot(tmp_path / "context")
    other.load_lora("mixed", tuned.folders["small"])
    with pytest.raises(SnapshotError, match="the snapshot is of"):
        other.load_snapshot(tmp_path / "context")
    engine.unload_lora("mixed")
    with pytest.raises(SnapshotError, match='"mixed" is loaded'):
        engine.restore(snapshot)
    engine.load_lora("mixed", tuned.folders["small"])
    with pytest.raises(SnapshotError, match="another LoRA adapter"):
        engine.restore(snapshot)


def test_adapters_share_the_pool_with_the_contexts(tune: Any, make_engine: Any, drive: Any, prompt: Prompt) -> None:
    tuned = tune()
    sizes = tuned.load(make_engine()).loras()
    engine = tuned.load(make_engine(kv_tokens=sizes["small"] + sizes["stable"] + 64))
    free, driver = engine.kv_free(), drive(engine)
    first = driver.open(prompt(30), lora="small")
    assert engine.kv_free() == free - sizes["small"]
    second = driver.open(prompt(30), lora="small")
    assert engine.kv_free() == free - sizes["small"]  # it is there once
    third = driver.open(prompt(10), lora="stable")
    with pytest.raises(KvExhausted):
        driver.open(prompt(5), lora="mixed")
    assert engine.kv_free() == 64
    driver.answers([first, third], [2, 2])
    engine.release(third)
    context = driver.open(prompt(20), lora="mixed")  # what nobody uses gives way, the other stays
    assert [engine._adapters.shelf.resident(name) for name in ("small", "stable", "mixed")] == [True, False, True]
    tuned.oracles["mixed"].check(prompt(20), driver.answer(context, 8))
    for used in (first, second, context):
        engine.release(used)
    assert engine.kv_free() == free
    again = driver.open(prompt(30), lora="small")
    tuned.oracles["small"].check(prompt(30), driver.answer(again, 8))


def test_idle_adapters_give_way_to_a_prompt_and_come_back(
    tune: Any, make_engine: Any, drive: Any, prompt: Prompt
) -> None:
    tuned = tune()
    tokens = max(tuned.load(make_engine()).loras().values()) + 64
    driver = drive(tuned.load(make_engine(kv_tokens=tokens)))
    engine = driver.engine
    for name in KINDS:
        context = driver.open(prompt(20), lora=name)
        tuned.oracles[name].check(prompt(20), driver.answer(context, 5))
        engine.release(context)
        assert engine._adapters.shelf.resident(name)
        long = driver.open(prompt(tokens - 32))
        driver.answer(long, 2, chunk=1000)
        engine.release(long)
        assert not engine._adapters.shelf.resident(name)
    assert engine.kv_free() == engine.capabilities.kv_tokens


def test_weights_in_the_pools_own_blocks(tune: Any, make_engine: Any, drive: Any, prompt: Prompt) -> None:
    """As on a device with memory of its own: multiplied from the blocks, which others take and fill in between."""
    tuned = tune()
    sizes = tuned.load(make_engine()).loras()
    engine = make_engine(kv_tokens=sizes["mixed"] + sizes["small"] + 256)
    engine._adapters.shelf._paged = True
    driver = drive(tuned.load(engine))
    for names in (["mixed", "small", None], ["stable", None, "stable"], ["small", "small", "mixed"]):
        contexts = [driver.open(prompt(20, seed=seed), lora=name) for seed, name in enumerate(names)]
        for seed, (name, answer) in enumerate(zip(names, driver.answers(contexts, [8] * 3), strict=True)):
            tuned.oracles[name].check(prompt(20, seed=seed), answer)
        for context in contexts:
            engine.release(context)
        long = driver.open(prompt(150))
        tuned.oracles[None].check(prompt(150), driver.answer(long, 4, chunk=100))
        engine.release(long)


def test_an_adapter_that_no_pool_of_this_size_can_hold(tune: Any, make_engine: Any) -> None:
    engine = make_engine(kv_tokens=64)
    with pytest.raises(OutOfMemory, match="pool holds 64") as caught:
        engine.load_lora("stable", tune().folders["stable"])
    assert "--kv-tokens" in (caught.value.fix or "")
    assert not engine.loras()


def test_more_adapters_than_are_looped_over(make_engine: Any, drive: Any, prompt: Prompt, lora_folder: Any) -> None:
    """A batch of one row each: many adapters of several ranks say together what they say alone."""
    driver = drive(make_engine(kv_tokens=8192))
    for seed in range(12):
        driver.engine.load_lora(f"a{seed}", str(lora_folder(seed=seed, rank=1 + seed % 5, on="(q|v|up)_proj")))
    alone = []
    for seed in range(12):
        context = driver.open(prompt(9, seed=seed), lora=f"a{seed}")
        alone.append(driver.answer(context, 8))
        driver.engine.release(context)
    contexts = [driver.open(prompt(9, seed=seed), lora=f"a{seed}") for seed in range(12)]
    assert driver.answers(contexts, [8] * 12, chunk=1) == alone


def test_an_embedding_is_the_models_own(tune: Any, make_engine: Any, drive: Any, prompt: Prompt) -> None:
    engine: TorchEngine = tune().load(make_engine())
    plain = [*make_engine().embed([prompt(20)])]
    context = engine.open(prompt(30), sampling=SamplingParams(), lora="small")
    engine.step([(context, 30)])
    assert [*engine.embed([prompt(20)])] == plain
