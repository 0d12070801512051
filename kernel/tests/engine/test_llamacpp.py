"""The llamacpp engine: what the contract does not say of it. Its oracle is the same model in transformers."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import shutil
import stat
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from aios_kernel.engine.protocol import KvExhausted, SamplingParams
from aios_kernel.errors import Busy, ConfigError, InvalidRequest, SnapshotError, UnknownModel, Unsupported

pytest.importorskip("llama_cpp", reason="needs aios-kernel[llamacpp]: make test-llamacpp")
import gguf as gguf_writer
import numpy as np

from aios_kernel.engine.llamacpp import library, llamacpp_model
from aios_kernel.engine.llamacpp.engine import LlamaEngine
from aios_kernel.engine.llamacpp.model import LlamaModel
from aios_kernel.syscalls import LlmChat, Message, ToolSpec

GREEDY = SamplingParams()
CLOSE = 0.05
"""Logits of a standard deviation of about 4 that llama.cpp and torch work out may differ so much."""
F32 = 0


@pytest.fixture
def make(gguf: Callable[..., Path]) -> Generator[Callable[..., LlamaEngine]]:
    with ExitStack() as opened:

        def engine(dtype: str = "float32", kv_tokens: int = 4096, file: Path | None = None) -> LlamaEngine:
            made = LlamaEngine(LlamaModel(file or gguf("tiny", dtype)), kv_tokens=kv_tokens, kind=F32, threads=1)
            return opened.enter_context(closing(made))

        yield engine


@pytest.fixture(scope="module")
def reference(gguf: Callable[..., Path]) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(gguf("tiny").parent, dtype=torch.float32).eval()


def logits(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]


def finish(engine: LlamaEngine, contexts: list[Any], n_tokens: int, chunk: int = 64) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in contexts]
    while any(len(tokens) < n_tokens for tokens in out):
        live = [row for row, tokens in enumerate(out) if len(tokens) < n_tokens]
        for row, output in zip(live, engine.step([(contexts[row], chunk) for row in live]), strict=True):
            assert output.error is None
            out[row] += [output.token] if output.token is not None else []
    return out


def check(model: Any, prompt: list[int], answer: list[int]) -> None:
    """Every token is among the best of the oracle, given what was said before it."""
    all_logits = logits(model, [*prompt, *answer])
    for place, token in enumerate(answer, start=len(prompt) - 1):
        assert all_logits[place].max() - all_logits[place, token] <= CLOSE


# --- the model ------------------------------------------------------------------------------------------------------


def test_a_batch_of_mixed_lengths_says_what_transformers_says(make: Any, reference: Any, prompt: Any) -> None:
    engine = make()
    prompts = [prompt(length, seed=length) for length in (1, 5, 40, 200)]
    contexts = [engine.open(tokens, sampling=GREEDY) for tokens in prompts]
    for tokens, answer in zip(prompts, finish(engine, contexts, 20, chunk=33), strict=True):
        check(reference, tokens, answer)


def test_more_tokens_than_a_batch_of_llama_cpp_has(make: Any, reference: Any, prompt: Any) -> None:
    engine = make(kv_tokens=8192)
    long, short = prompt(3000), prompt(10)
    contexts = [engine.open(tokens, sampling=GREEDY) for tokens in (long, short)]
    answers = finish(engine, contexts, 3, chunk=5000)
    check(reference, long, answers[0])
    check(reference, short, answers[1])


def test_quantised_weights_are_near_the_full_ones(make: Any, reference: Any, prompt: Any) -> None:
    tokens = prompt(60)
    engine = make("q8_0")
    (output,) = engine.step([(engine.open(tokens, sampling=SamplingParams(top_logprobs=199)), 64)])
    mine = torch.tensor([value for _, value in sorted(output.top)])
    theirs = torch.log_softmax(logits(reference, tokens)[-1], dim=-1)
    assert torch.corrcoef(torch.stack([mine, theirs]))[0, 1] > 0.99
    assert not torch.allclose(mine, theirs, atol=1e-3)  # it is quantised indeed


def test_log_probabilities_of_prompt_and_answer(make: Any, reference: Any, prompt: Any) -> None:
    engine, tokens = make(), prompt(300)
    context = engine.open(tokens, sampling=SamplingParams(prompt_logprobs=1, top_logprobs=2))
    scores: list[Any] = []
    token = None
    while token is None:
        (output,) = engine.step([(context, 1000)])
        scores, token = scores + output.prompt, output.token
    expected = torch.log_softmax(logits(reference, tokens), dim=-1)
    assert [score.token for score in scores] == tokens[1:]
    for place, score in enumerate(scores):
        assert score.logprob == pytest.approx(float(expected[place, tokens[place + 1]]), abs=CLOSE)
    assert output.logprob == pytest.approx(float(expected[-1, token]), abs=CLOSE)


def test_more_scores_in_a_step_than_llama_cpp_gives_in_a_batch(make: Any, reference: Any, prompt: Any) -> None:
    engine = make()
    scoring = [engine.open(prompt(300, seed), sampling=SamplingParams(prompt_logprobs=0)) for seed in range(3)]
    others = [engine.open(prompt(9, seed), sampling=GREEDY) for seed in range(100)]
    outputs = engine.step([(context, 400) for context in [*scoring, *others]])
    assert [len(output.prompt) for output in outputs[:3]] == [256] * 3
    for context, output in zip(scoring, outputs[:3], strict=True):
        expected = torch.log_softmax(logits(reference, context.tokens), dim=-1)
        for place, score in enumerate(output.prompt):
            assert score.logprob == pytest.approx(float(expected[place, context.tokens[place + 1]]), abs=2 * CLOSE)
    for context, output in zip(others, outputs[3:], strict=True):
        check(reference, context.tokens[:9], [output.token])


def test_logits_that_are_no_numbers_end_their_context_alone(
    gguf: Any, make: Any, tmp_path: Path, prompt: Any, reference: Any
) -> None:
    broken = copy.deepcopy(reference)
    with torch.no_grad():
        broken.get_input_embeddings().weight[7] = float("nan")
    file = converted(broken, tmp_path)
    engine = make(file=file)
    well = [token for token in prompt(30) if token != 7]
    bad, good = engine.open([3, 7, 4], sampling=GREEDY), engine.open(well, sampling=GREEDY)
    outputs = engine.step([(bad, 64), (good, 64)])
    assert "not finite" in outputs[0].error
    assert outputs[1].token is not None
    engine.release(bad)
    assert engine.open([3, 7, 4], sampling=GREEDY).cached == 0  # what it computed is not kept


def converted(model: Any, folder: Path) -> Path:
    import runpy

    model.save_pretrained(folder)
    file = Path(__file__).parents[3] / "evals/src/aios_evals/engine_bench/workers/gguf_file.py"
    runpy.run_path(str(file))["write"](folder, folder / "model.gguf", "float32")
    return folder / "model.gguf"


# --- prefixes, forks, snapshots -------------------------------------------------------------------------------------


def test_what_was_computed_is_found_again(make: Any, reference: Any, prompt: Any) -> None:
    engine, tokens = make(), prompt(50)
    first = engine.open(tokens, sampling=GREEDY)
    (answer,) = finish(engine, [first], 10)
    living = engine.open([*tokens, 1, 2], sampling=GREEDY)
    assert living.cached == 50  # of one that lives
    engine.release(first)
    turn = [*tokens, *answer, 8, 9]
    second = engine.open(turn, sampling=GREEDY)
    assert second.cached == 59  # the last token of the answer has no KV
    check(reference, turn, finish(engine, [second], 5)[0])
    assert engine.open(turn, sampling=GREEDY, salt=b"another").cached == 0
    assert engine.open(tokens[:20], sampling=GREEDY).cached == 19


def test_what_is_kept_makes_room(make: Any, prompt: Any) -> None:
    engine = make(kv_tokens=256)
    for seed in range(8):
        context = engine.open(prompt(60, seed), sampling=GREEDY)
        finish(engine, [context], 3)
        engine.release(context)
    assert engine.kv_free() == 256
    big = engine.open(prompt(250), sampling=GREEDY)
    assert finish(engine, [big], 2)
    assert engine.kv_free() == 256 - 251


def test_more_contexts_than_sequences(make: Any, prompt: Any) -> None:
    engine = make(kv_tokens=4096)
    contexts = [engine.open(prompt(3, seed), sampling=GREEDY) for seed in range(257)]
    for begin in range(0, 256, 64):
        engine.step([(context, 8) for context in contexts[begin : begin + 64]])
    before = engine.kv_free()
    with pytest.raises(KvExhausted):
        engine.step([(contexts[256], 8)])
    with pytest.raises(KvExhausted):
        engine.fork(contexts[0])
    assert engine.kv_free() == before
    engine.release(contexts[0])
    assert engine.step([(contexts[256], 8)])[0].token is not None


def test_a_fork_takes_cells_only_for_what_follows(make: Any, prompt: Any) -> None:
    engine = make()
    context = engine.open(prompt(100), sampling=GREEDY)
    finish(engine, [context], 1)
    free = engine.kv_free()
    twins = [engine.fork(context, at=100, sampling=SamplingParams(temperature=1.0, seed=seed)) for seed in range(10)]
    assert engine.kv_free() == free
    answers = finish(engine, twins, 5)
    assert free - engine.kv_free() == 10 * 5
    assert len({tuple(answer) for answer in answers}) > 1


@pytest.mark.parametrize("dtype", ["float32", "q8_0"])
def test_another_process_would_continue_from_the_file(make: Any, prompt: Any, tmp_path: Path, dtype: str) -> None:
    engine, other, stranger = make(dtype), make(dtype), make("q8_0" if dtype == "float32" else "float32")
    sampled = SamplingParams(temperature=0.9, seed=5, repetition_penalty=1.2)
    expected = finish(engine, [engine.open(prompt(70), sampling=sampled)], 20)[0]
    context = engine.open(prompt(70), sampling=sampled, salt=b"other")
    begun = finish(engine, [context], 8)[0]
    file = tmp_path / "context"
    engine.snapshot(context).save(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [*tmp_path.iterdir()] == [file]
    snapshot = other.load_snapshot(file)
    assert begun + finish(other, [other.restore(snapshot)], 12)[0] == expected
    with pytest.raises(SnapshotError, match="cannot continue"):
        stranger.restore(snapshot)
    for damage in (b"", file.read_bytes()[:-1], file.read_bytes().replace(b"a", b"b", 1), b"no snapshot\n{}"):
        file.write_bytes(damage)
        with pytest.raises(SnapshotError, match="cannot be read"):
            other.load_snapshot(file)
    with pytest.raises(SnapshotError, match="cannot be read"):
        other.load_snapshot(tmp_path / "gone")


def test_a_snapshot_takes_up_what_is_still_there(make: Any, prompt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    context = engine.open(prompt(70), sampling=GREEDY)
    begun = finish(engine, [context], 5)[0]
    twin = engine.fork(context)
    expected = finish(engine, [twin], 10)[0]
    snapshot = engine.snapshot(context)
    monkeypatch.setattr(engine._runner, "write", None)  # no copy is made
    context = engine.restore(snapshot)
    monkeypatch.undo()
    assert finish(engine, [context], 10)[0] == expected
    again = engine.restore(snapshot)  # from the copy this time
    assert (again.tokens[70:], finish(engine, [again], 10)[0]) == (begun, expected)


# --- adapters -------------------------------------------------------------------------------------------------------


def write_lora(file: Path, seed: int, rank: int = 4, width: int = 64) -> dict[str, np.ndarray]:
    """An adapter on the first layer's output projection and the last one's `down`; gives what it adds to them."""
    chooser = np.random.default_rng(seed)
    writer = gguf_writer.GGUFWriter(file, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    added: dict[str, np.ndarray] = {}
    for name, columns in (("blk.0.attn_output", 64), ("blk.2.ffn_down", 96)):
        a = chooser.normal(0, 0.5, (rank, columns)).astype(np.float32)
        b = chooser.normal(0, 0.5, (width, rank)).astype(np.float32)
        writer.add_tensor(f"{name}.weight.lora_a", a)
        writer.add_tensor(f"{name}.weight.lora_b", b)
        added[name] = b @ a
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return added


def merged(model: Any, added: dict[str, np.ndarray]) -> Any:
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight += torch.from_numpy(added["blk.0.attn_output"])
        model.model.layers[2].mlp.down_proj.weight += torch.from_numpy(added["blk.2.ffn_down"])
    return model


def test_adapters_are_as_merged_weights(make: Any, reference: Any, prompt: Any, tmp_path: Path) -> None:
    engine, tokens = make(), prompt(40)
    models = {None: reference}
    for seed, name in enumerate(("one", "two")):
        models[name] = merged(reference, write_lora(tmp_path / name, seed))
        engine.load_lora(name, str(tmp_path / name))
    order = ["one", None, "two", "one"]
    contexts = [engine.open(tokens, sampling=GREEDY, lora=name) for name in order]
    answers = finish(engine, contexts, 10, chunk=17)
    for name, answer in zip(order, answers, strict=True):
        check(models[name], tokens, answer)
    assert len({tuple(answer) for answer in answers}) == 3
    again = engine.open(tokens, sampling=GREEDY, lora="two")
    assert again.cached == 39  # of the same adapter alone
    snapshot = engine.snapshot(contexts[2])
    check(models["two"], [*tokens, *answers[2]], finish(engine, [engine.restore(snapshot)], 5)[0])


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_in_pefts_format(make: Any, reference: Any, prompt: Any, tmp_path: Path, rslora: bool) -> None:
    """On all linear layers of all blocks, queries and keys among them, whose rows llama.cpp has in another order."""
    engine, model, tokens = make(), copy.deepcopy(reference), prompt(40)
    scale = 16 / 4**0.5 if rslora else 16 / 4
    tensors: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith("_proj"):
            a, b = torch.randn(4, module.in_features) * 0.1, torch.randn(module.out_features, 4) * 0.1
            tensors |= {f"base_model.model.{name}.lora_{half}.weight": part for half, part in (("A", a), ("B", b))}
            with torch.no_grad():
                module.weight += scale * b @ a
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "bias": "none", "use_rslora": rslora}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    engine.load_lora("mine", str(tmp_path))
    engine.load_lora("mine", str(tmp_path))
    (answer,) = finish(engine, [engine.open(tokens, sampling=GREEDY, lora="mine")], 15)
    check(model, tokens, answer)
    assert answer != finish(engine, [engine.open(tokens, sampling=GREEDY)], 15)[0]
    for wrong in ({"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(Unsupported, match="no plain LoRA"):
            engine.load_lora("other", str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        engine.load_lora("other", str(tmp_path))


def test_adapters_that_are_not_there_or_in_use(make: Any, tmp_path: Path, prompt: Any) -> None:
    engine = make()
    with pytest.raises(UnknownModel, match='no LoRA adapter "mine"'):
        engine.open([1], sampling=GREEDY, lora="mine")
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        engine.load_lora("mine", str(tmp_path / "junk"))
    with pytest.raises(UnknownModel, match="is not at"):
        engine.load_lora("mine", str(tmp_path / "gone"))
    for seed, name in enumerate(("one", "two")):
        write_lora(tmp_path / name, seed)
    engine.load_lora("mine", str(tmp_path / "one"))
    engine.load_lora("mine", str(tmp_path / "one"))
    with pytest.raises(InvalidRequest, match="weights are others"):
        engine.load_lora("mine", str(tmp_path / "two"))
    context = engine.open(prompt(20), sampling=GREEDY, lora="mine")
    (spoken,) = finish(engine, [context], 5)
    with pytest.raises(Busy, match="in use"):
        engine.unload_lora("mine")
    snapshot = engine.snapshot(context)
    engine.unload_lora("mine")
    with pytest.raises(UnknownModel):
        engine.restore(snapshot)
    engine.load_lora("mine", str(tmp_path / "two"))
    other = engine.open(prompt(20), sampling=GREEDY, lora="mine")
    assert other.cached == 0  # what the former one computed is gone
    assert finish(engine, [other], 5)[0] != spoken
    assert list(engine.loras()) == ["mine"]


# --- embeddings -----------------------------------------------------------------------------------------------------


def test_vectors_are_those_of_the_plain_model(make: Any, reference: Any, prompt: Any) -> None:
    engine = make(kv_tokens=64)
    texts = [prompt(length) for length in (3, 10, 3000, 1)]
    forwards = list(engine.embed(texts))
    assert [len(vectors) for vectors in forwards] == [2, 0, 0, 0, 0, 0, 1, 1]  # the long one alone, in six forwards
    for tokens, vector in zip(texts, [v for vectors in forwards for v in vectors], strict=True):
        with torch.inference_mode():
            hidden = reference.base_model(torch.tensor([tokens])).last_hidden_state[0].mean(dim=0)
        expected = torch.nn.functional.normalize(hidden, dim=0)
        assert vector == pytest.approx(expected.tolist(), abs=2e-3)
    with pytest.raises(ValueError, match="at least one token"):
        engine.embed([[]])


# --- the file's tokenizer and template ------------------------------------------------------------------------------

ADD = ToolSpec(name="add", parameters={"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]})


@pytest.fixture(scope="module")
def loaded(gguf: Callable[..., Path]) -> Generator[Any]:
    model = llamacpp_model(str(gguf("chat", "q8_0")), kv_tokens=2048, threads=1)
    yield model
    model.engine.close()


def test_the_files_own_tokenizer(loaded: Any) -> None:
    codec = loaded.codec
    text = 'the “thé” 🙂 {"a": [1]}\n'
    assert codec.decode(codec.encode(text)) == text
    assert len(codec.encode("the")) == 1  # its merges count
    prompt = codec.encode_chat(LlmChat(messages=[Message("user", "hi")]))
    assert codec.decode(prompt) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    (start, *_), ends = prompt, codec.end_tokens
    assert codec.encode("<|im_start|>") == [start]
    assert {codec.encode("<|im_end|>")[0]} <= ends
    stream = codec.stream(LlmChat(messages=[]))
    assert "".join(stream.push(token).text for token in codec.encode("é<|im_start|>!")) == "é!"


def test_tools_are_written_as_the_template_does_and_grammars_hold_random_weights(loaded: Any) -> None:
    codec, engine = loaded.codec, loaded.engine
    call = LlmChat(messages=[Message("user", "hi")], tools=[ADD], tool_choice="required", parallel_tool_calls=False)
    tokens = codec.encode_chat(call)
    assert '"add"' in codec.decode(tokens)
    context = engine.open(tokens, sampling=GREEDY, grammar=codec.grammar(call))
    stream, calls = codec.stream(call), []
    for _ in range(200):
        (output,) = engine.step([(context, 1000)])
        assert output.error is None
        if output.token in codec.end_tokens:
            break
        calls += stream.push(output.token).tool_calls if output.token is not None else []
    calls += stream.finish().tool_calls
    assert [(found.name, json.loads(found.arguments)["a"] in (1, 2)) for found in calls] == [("add", True)]


def test_a_grammar_survives_a_file(loaded: Any, tmp_path: Path) -> None:
    codec, engine = loaded.codec, loaded.engine
    call = LlmChat(messages=[Message("user", "hi")], regex="(ab|cd){10}")
    context = engine.open(codec.encode_chat(call), sampling=GREEDY, grammar=codec.grammar(call))
    begun = finish(engine, [context], 5)[0]
    snapshot = engine.snapshot(context)
    snapshot.save(tmp_path / "file")
    with pytest.raises(SnapshotError, match="grammar"):
        engine.load_snapshot(tmp_path / "file")
    restored = engine.restore(engine.load_snapshot(tmp_path / "file", codec.load_grammar))
    text = codec.decode(begun + finish(engine, [restored], 15)[0])
    assert len(text) == 20
    assert {text[at : at + 2] for at in range(0, 20, 2)} <= {"ab", "cd"}


# --- what cannot be loaded ------------------------------------------------------------------------------------------


def test_files_that_cannot_be_served(gguf: Any, tmp_path: Path) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"GGUF junk")
    with pytest.raises(ConfigError, match="cannot load"):
        llamacpp_model(str(tmp_path / "junk.gguf"))
    with pytest.raises(Unsupported, match="no tokenizer"):
        llamacpp_model(str(shutil.copy(gguf("tiny"), tmp_path)), kv_tokens=64)
    for wrong in ({"dtype": "int4"}, {"device": "tpu"}, {"kv_tokens": 1 << 60}, {"kv_tokens": 3}):
        with pytest.raises(ConfigError):
            llamacpp_model(str(gguf("chat")), **wrong)


def test_another_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp passes structures by their layout: another version's would be misread."""
    assert importlib.metadata.version("llama-cpp-python") == library.TESTED
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "0.4.0")
    with pytest.raises(ConfigError, match=r"0\.4\.0 is installed; .* 0\.3\.36"):
        library.library.__wrapped__()
