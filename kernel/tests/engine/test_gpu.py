"""The same promises on the device itself: kernels, graphs, swaps, one wait a step."""

from __future__ import annotations

import copy
import gc
from typing import Any

import numpy as np
import pytest
import torch

from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch import TorchEngine
from aios_kernel.engine.torch.kv import LayerShape
from aios_kernel.engine.torch.native.memory import Scoring
from aios_kernel.engine.torch.native.plan import plan
from aios_kernel.engine.torch.paged.memory import PagedKvMemory
from aios_kernel.engine.torch.paged.plan import Step, inputs_of, pack_step, upload
from aios_kernel.engine.torch.prefix import BLOCK

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.timeout(600),
]
GREEDY = SamplingParams()
KINDS = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "mixtral", "qwen3_moe"]


@pytest.fixture
def cuda() -> Any:
    yield torch.device("cuda")
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def make(oracles: Any, cuda: torch.device) -> Any:
    def make(family: str = "llama", **options: Any) -> TorchEngine:
        return TorchEngine(copy.deepcopy(oracles(family).model).to(cuda), kv_tokens=4096, **options)

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [(32, 8), (28, 4), (8, 8), (6, 1)])
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (100, None), (None, 5.0)])
def test_kernels(
    cuda: torch.device, dtype: torch.dtype, heads: tuple[int, int], dim: int, window: int | None, softcap: float | None
) -> None:
    torch.manual_seed(0)
    n_blocks, (n_heads, kv_heads) = 200, heads
    memory = PagedKvMemory([LayerShape(kv_heads, dim, dim)], n_blocks, dtype=dtype, device=cuda, heads=n_heads)
    keys, values = (torch.randn(1, kv_heads, n_blocks * BLOCK, dim, dtype=dtype, device=cuda) for _ in range(2))
    memory.put(0, torch.arange(n_blocks * BLOCK, device=cuda), keys, values)
    shared = list(range(1, 20))
    tables = [np.array([*shared, 20 + row, 60 + row]) for row in range(5)] + [np.array([100 + n for n in range(80)])]
    lengths = [320 + row for row in range(5)] + [1201]
    chunk = (np.array(range(181, 199)), 100, 150)
    positions = np.concatenate([[length - 1 for length in lengths], np.arange(chunk[1], chunk[1] + chunk[2])])
    owners = [*tables, *([chunk[0]] * chunk[2])]
    slots = np.array([t[p // BLOCK] * BLOCK + p % BLOCK for t, p in zip(owners, positions, strict=True)])
    laid_out = plan(tables, [(chunk[2], chunk[0])], slots, positions)
    packed = pack_step(Step(np.zeros_like(slots), np.arange(len(slots)), len(tables), laid_out), memory.tiling)
    assert packed.sizes.units == 1
    inputs = inputs_of(upload(packed.numbers, cuda), packed.sizes, memory.tiling, packed)
    query = torch.randn(1, n_heads, len(slots), dim, dtype=dtype, device=cuda)
    at = inputs.plan.slots
    out = memory.attend(0, inputs.plan, query, keys[:, :, at], values[:, :, at], Scoring(dim**-0.5, window, softcap))
    for row, (table, position) in enumerate(zip(owners, positions.tolist(), strict=True)):
        past = np.arange(max(0, position + 1 - (window or 1 << 30)), position + 1)
        seen = torch.from_numpy(table[past // BLOCK] * BLOCK + past % BLOCK).to(cuda)
        group = n_heads // kv_heads
        key, value = (x[0, :, seen].float().repeat_interleave(group, dim=0) for x in (keys, values))
        scores = (query[0, :, row : row + 1].float() @ key.transpose(1, 2)) * dim**-0.5
        scores = torch.tanh(scores / softcap) * softcap if softcap else scores
        expected = (scores.softmax(dim=-1) @ value)[:, 0]
        tolerance = 1e-3 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(out[0, row].float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("family", KINDS)
def test_families(make: Any, drive: Any, oracles: Any, prompt: Any, family: str, graphs: bool) -> None:
    engine = make(family)
    if not graphs:
        engine._paged.graphs = None
    driver, oracle = drive(engine), oracles(family)
    prompts = [prompt(3), prompt(41), [*prompt(140), 5], [*prompt(140), 9, 8]]
    contexts = [driver.open(tokens) for tokens in prompts]
    answers = driver.answers(contexts, [12, 7, 9, 9], chunk=60)
    for tokens, answer in zip(prompts, answers, strict=True):
        oracle.check(tokens, answer)
    assert bool(engine.recorded_graphs) == graphs


def test_swaps_beside_steps(make: Any, drive: Any, oracles: Any, prompt: Any) -> None:
    engine = make()
    driver = drive(engine)
    busy, lives = driver.open(prompt(20)), []
    said = driver.answer(busy, 1)
    for seed in range(5):
        context = driver.open(prompt(500, seed=seed))
        answer = driver.answer(context, 2, chunk=1000)
        lives.append((prompt(500, seed=seed), engine.snapshot(context), answer))
        said += driver.answer(busy, 2)
    for tokens, snapshot, answer in lives:
        assert snapshot.data[0].is_pinned()
        context = engine.restore(snapshot)
        said += driver.answer(busy, 1)
        oracles("llama").check(tokens, answer + driver.answer(context, 5))
        engine.release(context)
    oracles("llama").check(prompt(20), said)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=0.8, seed=3), SamplingParams(top_logprobs=2)])
def test_one_wait_a_step(make: Any, drive: Any, prompt: Any, sampling: SamplingParams) -> None:
    """Nothing but `collect` waits for the device."""
    engine = make()
    driver = drive(engine)
    contexts = [driver.open(prompt(30, seed=seed), sampling=sampling) for seed in range(3)]
    driver.answers(contexts, [4, 4, 4], chunk=1000)
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = engine.launch([(context, 1) for context in contexts])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(output.token is not None for output in engine.collect(launched))
