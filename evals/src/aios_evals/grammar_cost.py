"""`aios bench grammar`: what grammars cost in a step of the engine, measured on a walk through tool calls.

A batch of contexts decodes on the 34 M model; behind every forward its logits are replaced by those of a model that
writes a given tool call, so that every step is the same work with a grammar and without. `followed` is a model that
keeps to the format by itself, `steered` one whose every token has to be corrected. Counted is what the engine's thread
spends beside the forward; `forward_us` shows whether the work beside it slowed it down.
"""

from __future__ import annotations

import copy
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios_evals.replay_model import VOCABULARY, random_model, write_tokenizer
from aios_kernel.syscalls import LlmChat, Message, ToolSpec

if TYPE_CHECKING:
    from aios_kernel.chat.protocol import Codec
    from aios_kernel.engine.torch.context import TorchContext

KINDS = ("plain", "followed", "steered")
_PROMPT = 96
"""Tokens of KV that each context has."""
_TOOL = ToolSpec(
    name="book",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "nights": {"type": "integer", "minimum": 1, "maximum": 30},
            "class": {"enum": ["economy", "business", "first"]},
            "guests": {
                "type": "array",
                "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
                "minItems": 1,
                "maxItems": 3,
            },
        },
        "required": ["city", "nights", "class", "guests"],
        "additionalProperties": False,
    },
)
_CALL = LlmChat(messages=[Message("user", "book")], tools=[_TOOL], tool_choice="required", parallel_tool_calls=False)
_WORDS = ("Oslo", "Zürich", "Maria", "New York", "José Silva", "Lee")


@dataclass(slots=True)
class _Spent:
    """Seconds of each step: of the forward, and of the thread beside it."""

    forward_s: list[float] = field(default_factory=list[float])
    beside_s: list[float] = field(default_factory=list[float])


def run(batches: Sequence[int] = (32,), walks: int = 4, model: Any = None) -> list[dict[str, Any]]:
    """One row a dtype, batch and kind, on the replay model unless another is given."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="aios-grammar-") as folder:
        codec = _codec(Path(folder))
    rows: list[dict[str, Any]] = []
    for dtype in (torch.float32, torch.bfloat16):
        for batch in batches:
            own = random_model() if model is None else copy.deepcopy(model)  # the engine takes it over
            spent = _measure(own.to(dtype), codec, batch, walks)
            rows += _rows(spent, str(dtype).removeprefix("torch."), batch)
    return rows


def _rows(spent: dict[str, _Spent], dtype: str, batch: int) -> list[dict[str, Any]]:
    plain = spent["plain"]
    plain_s = _mean(plain.beside_s)
    step_s = _mean(plain.forward_s) + plain_s
    return [
        {
            "dtype": dtype,
            "batch": batch,
            "kind": kind,
            "steps": len(each.beside_s),
            "step_us": step_s * 1e6,
            "forward_us": _mean(each.forward_s) * 1e6,
            "beside_us": _mean(each.beside_s) * 1e6,
            "grammar_us": (_mean(each.beside_s) - plain_s) * 1e6,
            "share": (_mean(each.beside_s) - plain_s) / step_s,
        }
        for kind, each in spent.items()
    ]


def _mean(seconds: Sequence[float]) -> float:
    """Of all but the slowest twentieth: other programs run on this machine too."""
    ordered = sorted(seconds)
    return statistics.fmean(ordered[: max(1, len(ordered) * 19 // 20)])


def _measure(model: Any, codec: Codec, batch: int, walks: int) -> dict[str, _Spent]:
    import torch

    from aios_kernel.engine.protocol import SamplingParams
    from aios_kernel.engine.torch import TorchEngine

    engine = TorchEngine(model, kv_tokens=batch * (_PROMPT + 64))
    chooser = random.Random(1)
    prompts = [[chooser.randrange(engine.vocab) for _ in range(_PROMPT)] for _ in range(batch)]
    decoding: list[Any] = [engine.open(prompt, sampling=SamplingParams()) for prompt in prompts]
    while any(context.pending > 1 for context in decoding):
        engine.step([(context, _PROMPT) for context in decoding if context.pending > 1][:16])
    engine.step([(context, 1) for context in decoding])
    spent = {kind: _Spent() for kind in KINDS}
    with torch.inference_mode():
        for _ in range(walks):
            answers = [_tokens(codec, chooser) for _ in range(batch)]
            _walk(engine, decoding, codec, answers, spent)
    engine.close()
    return spent


def _walk(
    engine: Any, decoding: Sequence[TorchContext], codec: Codec, answers: list[list[int]], spent: dict[str, _Spent]
) -> None:
    """Write one call a context, all kinds in turn in every step."""
    runs = {kind: [*_contexts(codec, len(answers), grammar=kind != "plain")] for kind in KINDS}
    for step in range(min(map(len, answers))):
        wanted = [answer[step] for answer in answers]
        for kind, contexts in runs.items():
            wrong = min(codec.end_tokens) if kind == "steered" else None
            _step(engine, decoding, contexts, wanted, wrong, spent[kind])


def _step(
    engine: Any,
    decoding: Sequence[TorchContext],
    contexts: Sequence[TorchContext],
    wanted: list[int],
    wrong: int | None,
    spent: _Spent,
) -> None:
    import torch

    from aios_kernel.engine.torch.batch import Work, pack
    from aios_kernel.engine.torch.sampler import choose

    runner, lookahead = engine._runner, engine._lookahead
    batch = pack([Work(context, 1) for context in decoding], engine._dense, runner.device)
    began = time.perf_counter()
    lookahead.begin(contexts)
    begun = time.perf_counter()
    logits = runner.forward(batch.ids, batch.positions, batch.layout, engine._memory, batch.rows)
    forwarded = time.perf_counter()
    logits.zero_()
    logits[torch.arange(len(wanted)), torch.tensor(wanted)] = 1.0
    if wrong is not None:  # the first choice is forbidden, the second is the answer's
        logits[:, wrong] = 2.0
    replaced = time.perf_counter()
    choices = choose(logits, contexts, lookahead.take())
    ended = time.perf_counter()
    assert [choice.token for choice in choices] == wanted
    spent.forward_s.append(forwarded - begun)
    spent.beside_s.append(begun - began + ended - replaced)


def _contexts(codec: Codec, n: int, *, grammar: bool) -> Iterator[TorchContext]:
    """Contexts whose grammars are advanced; the model runs on others."""
    from aios_kernel.engine.protocol import SamplingParams
    from aios_kernel.engine.torch.context import TorchContext

    for _ in range(n):
        held = codec.grammar(_CALL) if grammar else None
        yield TorchContext([0], sampling=SamplingParams(), grammar=held, root=b"")


def _codec(folder: Path) -> Codec:
    """Of a tokenizer as large as the model's vocabulary, trained on calls and made-up words."""
    from transformers import AutoTokenizer, GenerationConfig

    from aios_kernel.chat.codec import TransformersCodec

    chooser = random.Random(2)
    words = ["".join(chooser.choices("aeioulnrstdmkpg", k=chooser.randint(2, 9))) for _ in range(30_000)]
    write_tokenizer(folder, [" ".join(words), *(_text(chooser) for _ in range(200))])
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return TransformersCodec(tokenizer, GenerationConfig(), window=1024, width=VOCABULARY)


def _text(chooser: random.Random) -> str:
    """A call as a model would write it."""
    guests = ", ".join(f'{{"name": "{chooser.choice(_WORDS)}"}}' for _ in range(chooser.randint(1, 3)))
    arguments = (
        f'{{"city": "{chooser.choice(_WORDS)}", "nights": {chooser.randint(1, 30)}, "class": "economy", '
        f'"guests": [{guests}]}}'
    )
    return f'<tool_call>\n{{"name": "book", "arguments": {arguments}}}\n</tool_call>'


def _tokens(codec: Codec, chooser: random.Random) -> list[int]:
    return [*codec.encode(_text(chooser))]
