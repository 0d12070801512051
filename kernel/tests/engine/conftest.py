"""Small random models of every family, their oracle, and a driver of engines."""

from __future__ import annotations

import copy
import json
import random
import re
import runpy
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from aios_kernel.engine._source import Source
from aios_kernel.engine.expert_options import ExpertOptions
from aios_kernel.engine.load import DEMO
from aios_kernel.engine.load import _weights as load_weights
from aios_kernel.engine.protocol import Context, Engine, SamplingParams
from aios_kernel.engine.settings import VllmSettings
from aios_kernel.engine.torch import TorchEngine
from aios_kernel.engine.torch.experts.loading import mixture_of

_ROOT = Path(__file__).parents[3]
_KV_BYTES = 1 << 30
"""Of vLLM, which else wants nine tenths of the machine, and does not start where others use more than the rest."""
_CONVERTER = _ROOT / "evals/src/aios_evals/engine_bench/workers/gguf_file.py"
TIE = 1e-3
VOCAB = 199
WINDOW = 20
"""Of the families with sliding windows: neither a block nor a multiple of one."""
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_UNTIED = {"tie_word_embeddings": False}
"""Random Gemmas with tied embeddings repeat their input whatever attention does: they would prove little."""
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": WINDOW,
            "head_dim": 12,
            "attn_logit_softcapping": 5.0,
            "query_pre_attn_scalar": 12,
            **_UNTIED,
        },
    ),
    "gemma3": (
        "Gemma3",
        {"sliding_window": WINDOW, "head_dim": 12, "query_pre_attn_scalar": 1, "layer_types": _ALTERNATING, **_UNTIED},
    ),
    "phi3": ("Phi3", {"sliding_window": WINDOW}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, **_EXPERTS}),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, "head_dim": 12, **_EXPERTS}),
}
"""The name in transformers and what the configuration has beside the common small sizes."""
CACHED: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral_cached": ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3_moe_cached": (
        "Qwen3Moe",
        {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 32, "head_dim": 12},
    ),
    "qwen2_moe_cached": ("Qwen2Moe", {"num_experts": 6, "shared_expert_intermediate_size": 32, **_EXPERTS}),
    "olmoe_cached": ("Olmoe", {"num_experts": 8, "num_experts_per_tok": 3}),
}
"""Mixtures whose experts stay in files and are read into a cache of a random size, as little as one expert."""


def build_model(family: str) -> Any:
    name, extra = (FAMILIES | CACHED)[family]
    torch.manual_seed(7)
    config_class = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")
    config = config_class(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **extra,
    )
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


class Oracle:
    """Greedy `generate` of transformers, and the tie rule."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._known: dict[tuple[int, ...], list[int]] = {}

    def greedy(self, prompt: Sequence[int], n_tokens: int) -> list[int]:
        known = self._known.get(tuple(prompt), [])
        if len(known) < n_tokens:
            out = self.model.generate(
                torch.tensor([list(prompt)]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=n_tokens,
                do_sample=False,
                pad_token_id=0,
            )
            known = self._known[tuple(prompt)] = out[0, len(prompt) :].tolist()
        return known[:n_tokens]

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(torch.tensor([list(tokens)])).logits[0]

    def check(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Fail unless the answer is the greedy one, up to the first tie."""
        expected = self.greedy(prompt, len(answer))
        for place, (mine, theirs) in enumerate(zip(answer, expected, strict=True)):
            if mine != theirs:
                best = self.logits([*prompt, *expected[:place]])[-1].topk(2).values
                assert best[0] - best[1] <= TIE, f"token {place} is {mine}, not {theirs}"
                return


def write_lora(folder: Path, model: Any, *, rank: int = 8, seed: int = 0, on: str = ".*_proj", **config: Any) -> Path:
    """A random adapter in PEFT's format, on the layers whose last name matches `on`."""
    from safetensors.torch import save_file

    source = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and re.fullmatch(on, name.rpartition(".")[2]):
            for half, shape in (("A", (rank, module.in_features)), ("B", (module.out_features, rank))):
                tensors[f"base_model.model.{name}.lora_{half}.weight"] = torch.randn(shape, generator=source) * 0.2
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


class Driver:
    """Steps contexts of an engine until each has emitted what was asked for."""

    def __init__(self, engine: Engine, seed: int = 0) -> None:
        self.engine = engine
        self.random = random.Random(seed)

    def open(self, prompt: Sequence[int], **options: Any) -> Context:
        options.setdefault("sampling", SamplingParams())
        return self.engine.open(prompt, **options)

    def answer(self, context: Context, n_tokens: int, chunk: int = 64) -> list[int]:
        return self.answers([context], [n_tokens], chunk)[0]

    def answers(self, contexts: Sequence[Context], counts: Sequence[int], chunk: int = 64) -> list[list[int]]:
        """Step all contexts together, random chunk sizes up to `chunk`."""
        out: list[list[int]] = [[] for _ in contexts]
        while any(len(tokens) < count for tokens, count in zip(out, counts, strict=True)):
            live = [row for row, tokens in enumerate(out) if len(tokens) < counts[row]]
            outputs = self.engine.step([(contexts[row], self.random.randint(1, chunk)) for row in live])
            for row, output in zip(live, outputs, strict=True):
                assert output.error is None, output.error
                if output.token is not None:
                    out[row].append(output.token)
        return out


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=[*sorted(FAMILIES), *sorted(CACHED)])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def oracles() -> Callable[[str], Oracle]:
    known: dict[str, Oracle] = {}

    def oracle(family: str) -> Oracle:
        if family not in known:
            known[family] = Oracle(build_model(family))
        return known[family]

    return oracle


@pytest.fixture
def oracle(oracles: Callable[[str], Oracle], family: str) -> Oracle:
    return oracles(family)


@pytest.fixture
def native() -> bool:
    """Whether the compiled attention runs; a test that wants both parametrizes it."""
    return True


@pytest.fixture(scope="session")
def checkpoint(oracles: Callable[[str], Oracle], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's model."""
    known: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in known:
            known[family] = tmp_path_factory.mktemp(family)
            oracles(family).model.save_pretrained(known[family])
        return known[family]

    return folder


@pytest.fixture
def load_cached(checkpoint: Callable[[str], Path]) -> Iterator[Callable[..., Any]]:
    """Loads a family's model with its experts in a cache."""
    made: list[Any] = []

    def load(family: str, cache: float, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
        folder = checkpoint(family)
        config = transformers.AutoConfig.from_pretrained(folder)
        source = Source(folder, family)
        made.append(load_weights(source, config, torch.device("cpu"), dtype, ExpertOptions(cache, **options)))
        return made[-1]

    yield load
    for model in made:
        mixture_of(model).close()


@pytest.fixture
def make_engine(
    oracles: Callable[[str], Oracle], load_cached: Callable[..., Any], native: bool
) -> Callable[..., TorchEngine]:
    chooser = random.Random(0)

    def make(family: str = "llama", kv_tokens: int = 4096, dtype: torch.dtype = torch.float32) -> TorchEngine:
        if family in CACHED:
            # One expert, one a layer, some, all.
            model = load_cached(family, chooser.choice([1, 3, chooser.randint(1, 30), 60]) * 48 * 96 * 3 * 4, dtype)
        else:
            model = copy.deepcopy(oracles(family).model).to(dtype)
        return TorchEngine(model, kv_tokens=kv_tokens, native=native)

    return make


@pytest.fixture
def driver(make_engine: Callable[..., TorchEngine], family: str) -> Driver:
    return Driver(make_engine(family))


@pytest.fixture
def drive() -> type[Driver]:
    return Driver


@pytest.fixture
def lora_writer() -> Callable[..., Path]:
    """`write_lora`, for models of a test's own."""
    return write_lora


@pytest.fixture
def lora_folder(oracles: Callable[[str], Oracle], tmp_path: Path) -> Callable[..., Path]:
    """Writes an adapter of a family's model; gives its folder."""

    def make(family: str = "llama", seed: int = 0, **options: Any) -> Path:
        return write_lora(tmp_path / f"{family}-{seed}", oracles(family).model, seed=seed, **options)

    return make


@pytest.fixture
def window() -> int:
    """Sliding window of the families that have one."""
    return WINDOW


@pytest.fixture
def prompt() -> Callable[..., list[int]]:
    def make(length: int, seed: int = 0) -> list[int]:
        chooser = random.Random(f"{length}/{seed}")
        return [chooser.randrange(VOCAB) for _ in range(length)]

    return make


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes GGUF files, once each: `tiny` without tokenizer, `chat` with one in the file, `demo` with one beside it."""
    pytest.importorskip("llama_cpp", reason="needs aios-kernel[llamacpp]: make test-llamacpp")
    converter: Any = runpy.run_path(str(_CONVERTER))
    folders: dict[str, Path] = {}

    def make(name: str = "tiny", dtype: str = "float32") -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            _checkpoint(name, folders[name])
        target = folders[name] / f"{name}-{dtype}.gguf"
        if not target.exists():
            converter["write"](folders[name], target, dtype, _byte_tokenizer() if name == "chat" else None)
        return target

    return make


def _checkpoint(name: str, folder: Path) -> None:
    """A checkpoint in float32; the shapes of the random ones can be quantised."""
    if name == "demo":
        transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
            shutil.copy(DEMO / file, folder)
        return
    torch.manual_seed(7)
    width, inner = (128, 256) if name == "vllm" else (64, 96)  # vLLM wants heads of 32 at least
    config = transformers.LlamaConfig(
        vocab_size=len(_byte_tokenizer()["tokens"]) if name == "chat" else VOCAB,
        hidden_size=width, intermediate_size=inner, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=8192, initializer_range=0.3, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).eval().save_pretrained(folder)


_NORMAL, _CONTROL, _USER = 1, 3, 4
_CHATML = (
    "{% if tools %}<|im_start|>system\nTools: <tool_call>{{ tools | tojson }}</tool_call><|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _byte_tokenizer() -> dict[str, Any]:
    """Tokens of single bytes in the byte-level spelling, two merges, and the special tokens of ChatML with tools."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    spelling = {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(rest)}
    tokens = [spelling[byte] for byte in range(256)] + ["th", "the"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
    return {
        "tokens": [*tokens, *special],
        "types": [_NORMAL] * len(tokens) + [_CONTROL] * 3 + [_USER] * 2,
        "merges": ["t h", "th e"],
        "template": _CHATML,
        "end": len(tokens) + special.index("<|im_end|>"),
    }


@pytest.fixture(scope="session")
def vllm_core(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Any, Path, dict[str, Path]]]:
    """vLLM in this process (there can be one only), the folder of its small random model, and two adapters of it."""
    pytest.importorskip("vllm", reason="needs vLLM in the kernel's environment: make test-vllm")
    from aios_kernel.engine.vllm.inprocess.core import VllmCore

    folder = tmp_path_factory.mktemp("vllm")
    _checkpoint("vllm", folder)
    loras = {name: _peft(tmp_path_factory.mktemp(name), seed) for seed, name in enumerate(("one", "two"))}
    core = VllmCore(
        str(folder), 128,
        {
            "dtype": "float32", "block_size": 32, "max_model_len": 2048, "enforce_eager": True, "max_lora_rank": 8,
            "kv_cache_memory_bytes": _KV_BYTES,
        }, 2,
    )  # fmt: skip
    for name, adapter in loras.items():
        core.add_lora(name, adapter)
    yield core, folder, loras
    core.close()


@pytest.fixture
def make_vllm(vllm_core: Any) -> Generator[Callable[..., Any]]:
    """Makes engines on that core, each with a part of its pool; the prefix cache is empty."""
    from aios_kernel.engine.vllm.inprocess.engine import VllmStepEngine

    core, _, _ = vllm_core
    made: list[Any] = []

    def make(kv_tokens: int = 1024) -> Any:
        assert core.scheduler.reset_prefix_cache()
        made.append(VllmStepEngine(core, "random", kv_tokens))
        return made[-1]

    yield make
    for engine in made:
        for context in [*engine._live]:
            engine.release(context)


def _peft(folder: Path, seed: int) -> Path:
    """A LoRA adapter in PEFT format on all linear layers of the first block."""
    torch.manual_seed(seed)
    shapes = {
        "self_attn.q_proj": (128, 128), "self_attn.o_proj": (128, 128),
        "mlp.gate_proj": (256, 128), "mlp.down_proj": (128, 256),
    }  # fmt: skip
    tensors = {}
    for name, (rows, columns) in shapes.items():
        prefix = f"base_model.model.model.layers.0.{name}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(8, columns) * 0.2
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(rows, 8) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = [name.rpartition(".")[2] for name in shapes]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 8, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def vllm_settings() -> VllmSettings:
    """How vLLM's server is started in the tests: from the environment that `make bench-peers` makes."""
    python = _ROOT / ".venv-vllm" / "bin" / "python"
    if not (_ROOT / ".venv-vllm" / ".installed").exists():
        pytest.skip("needs vLLM in an environment of its own: make bench-peers")
    args = ["--dtype", "float32", "--block-size", "32", "--max-model-len", "2048", "--enforce-eager"]
    args += ["--num-gpu-blocks-override", "256", "--kv-cache-memory-bytes", str(_KV_BYTES)]
    return VllmSettings(python=str(python), args=args)
