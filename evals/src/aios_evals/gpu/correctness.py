"""What the engine says beside what transformers' `generate` says."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from aios_evals.engine_bench.exact import identical
from aios_evals.engine_bench.workers.generate import GeneratePeer
from aios_evals.gpu.bench import Row, Subject, prefill, released, tokens
from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch import TorchEngine

_LAYERS = 2
_LENGTHS = (7, 130, 400)
_SHARED = 200
"""The last two of the prompts begin with so many common tokens."""


def exactness(subject: Subject) -> Iterator[Row]:
    """Greedy tokens of the first layers in float32, all heads and widths as they are, against `generate`.

    A token counts as wrong when it differs although the two best logits are more than 1e-3 apart.
    """
    bench = subject.bench
    config = subject.shape.config(tiny=bench.tiny, layers=_LAYERS)
    precise = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    model = subject.shape.build(config, bench.device, torch.float32)
    engine = TorchEngine(copy.deepcopy(model), kv_tokens=8192)
    try:
        oracle = GeneratePeer(model)
        prompts = _prompts(engine.vocab)
        count = bench.sizes.generated
        theirs = [[*prompt, *answer] for prompt, answer in zip(prompts, oracle.generate(prompts, count), strict=True)]
        mine = _answers(engine, prompts, count)
        same = identical(mine, theirs, oracle.margin)
        yield {"dtype": "float32", "layers": config.num_hidden_layers, "sequences": len(prompts), "identical": same}
    finally:
        torch.backends.cuda.matmul.allow_tf32 = precise
        engine.close()


def agreement(subject: Subject) -> Iterator[Row]:
    """The whole model in the run's dtype: `generate`'s tokens forced through the engine, and where it would differ."""
    bench, model = subject.bench, subject.plain()
    prompts = _prompts(model.config.vocab_size)
    answers = GeneratePeer(model).generate(prompts, bench.sizes.generated)
    engine = subject.engine()
    contexts = [
        engine.open(prompt, sampling=SamplingParams(forced=tuple(answer)))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    said: list[tuple[bool, float]] = []
    for _ in range(bench.sizes.generated + 8):
        plan = [(context, context.pending) for context in contexts]
        for output in engine.step(plan):
            if output.error is not None:
                raise RuntimeError(output.error)
            if output.token is not None and len(said) < sum(map(len, answers)):
                said.append((output.argmax == output.token, output.margin or 0.0))
        if all(len(c.tokens) >= len(p) + bench.sizes.generated for c, p in zip(contexts, prompts, strict=True)):
            break
    released(engine, contexts)
    differing = [margin for same, margin in said if not same]
    yield {
        "dtype": str(bench.dtype).removeprefix("torch."),
        "layers": subject.facts().layers,
        "sequences": len(prompts),
        "agreeing_tokens": 1 - len(differing) / len(said),
        "largest_margin_of_difference": max(differing, default=0.0),
    }


def _prompts(vocab: int) -> list[list[int]]:
    chooser = random.Random("correctness")
    prompts = [tokens(chooser, length, vocab) for length in _LENGTHS]
    shared = tokens(chooser, _SHARED, vocab)
    return [*prompts, [*shared, *tokens(chooser, 3, vocab)], [*shared, *tokens(chooser, 9, vocab)]]


def _answers(engine: TorchEngine, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Conversations: the first half is prefilled in chunks, the rest joins while these decode."""
    contexts: list[Any] = [engine.open(prompt, sampling=SamplingParams()) for prompt in prompts]
    prefill(engine, contexts[:2])
    ends = [len(prompt) + count for prompt in prompts]
    while any(len(context.tokens) < end for context, end in zip(contexts, ends, strict=True)):
        live = [context for context, end in zip(contexts, ends, strict=True) if len(context.tokens) < end]
        for output in engine.step([(context, min(97, context.pending)) for context in live]):
            if output.error is not None:
                raise RuntimeError(output.error)
    said = [list(context.tokens) for context in contexts]
    released(engine, contexts)
    return said
