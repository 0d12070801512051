"""What grammars cost in a step: filling masks, applying them and advancing, measured on a walk through tool calls."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aios_kernel.syscalls import LlmChat, Message, ToolSpec

if TYPE_CHECKING:
    from aios_kernel.chat.protocol import Codec

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
_WORDS = ("Oslo", "Zürich", "Maria", "New York", "José Silva", "Lee")


@dataclass(frozen=True, slots=True)
class GrammarCost:
    """Seconds of one step of `batch` contexts; `followed` is a model that keeps to the format by itself, `steered` one
    whose every token has to be masked.
    """

    batch: int
    followed_s: float
    steered_s: float


def measure(codec: Codec, vocab: int, *, batch: int = 32, walks: int = 3) -> GrammarCost:
    """Measure on the codec of a model.

    Args:
        codec: of a transformers model.
        vocab: width of its logits.
        batch: contexts in a step.
        walks: batches of answers to walk through.
    """
    import torch

    from aios_kernel.engine.protocol import SamplingParams
    from aios_kernel.engine.torch.context import TorchContext
    from aios_kernel.engine.torch.sampler import choose

    call = LlmChat(messages=[Message("user", "book")], tools=[_TOOL], tool_choice="required", parallel_tool_calls=False)
    spent = {"plain": 0.0, "followed": 0.0, "steered": 0.0}
    steps = 0
    chooser = random.Random(1)
    for _ in range(walks):
        answers = [_tokens(codec, chooser) for _ in range(batch)]
        length = min(len(answer) for answer in answers)
        runs = {
            kind: [
                TorchContext(
                    [0],
                    sampling=SamplingParams(),
                    grammar=codec.grammar(call) if kind != "plain" else None,
                    root=b"",
                )
                for _ in answers
            ]
            for kind in spent
        }
        for step in range(length):
            wanted = torch.tensor([answer[step] for answer in answers])
            for kind, contexts in runs.items():
                logits = torch.zeros(batch, vocab)
                logits[torch.arange(batch), wanted] = 1.0
                if kind == "steered":  # the first choice is forbidden, the second is the answer's
                    logits[:, min(codec.end_tokens)] = 2.0
                began = time.perf_counter()
                choose(logits, contexts)
                spent[kind] += time.perf_counter() - began
        steps += length
    plain = spent["plain"] / steps
    return GrammarCost(batch, spent["followed"] / steps - plain, spent["steered"] / steps - plain)


def _tokens(codec: Codec, chooser: random.Random) -> list[int]:
    """A call as a model would write it."""
    guests = ", ".join(f'{{"name": "{chooser.choice(_WORDS)}"}}' for _ in range(chooser.randint(1, 3)))
    arguments = (
        f'{{"city": "{chooser.choice(_WORDS)}", "nights": {chooser.randint(1, 30)}, "class": "economy", '
        f'"guests": [{guests}]}}'
    )
    return [*codec.encode(f'<tool_call>\n{{"name": "book", "arguments": {arguments}}}\n</tool_call>')]


def as_row(cost: GrammarCost, step_s: float) -> dict[str, Any]:
    """A bench row; `step_s` is the time of the model's own step."""
    return {
        "batch": cost.batch,
        "followed_us": round(cost.followed_s * 1e6, 1),
        "steered_us": round(cost.steered_s * 1e6, 1),
        "followed_share": cost.followed_s / step_s,
        "steered_share": cost.steered_s / step_s,
    }
