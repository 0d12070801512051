"""Mixtures with random weights in the shape of Qwen3-MoE, whose routers are told apart by what steers them.

`uniform`: router and tokens are random: every expert is used equally often, and nothing tells which is next.

`topics`: every token of the vocabulary belongs to one of 16 topics, whose direction is in its embedding, and in every
layer each topic has its own few experts, towards which the router's weights lean. A text keeps to a topic for ten
tokens on average and draws its tokens by Zipf's law. So the same experts come again from token to token, some are used
more than others, and a token's experts in one layer tell something of those in the next. How strongly is measured, not
assumed: the bench prints `repeated`, the share of a layer's experts that it used in the pass before too, and
`top_fifth`, the share of all uses that falls on the fifth of the experts used most. Since the weights are random and
small beside the embeddings, a layer changes its input little: the next router asked too early is right more often here
than in a trained model.

`trained`: a smaller mixture, trained for a minute (`trained.py`), so that nobody chose how its router behaves.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aios_evals.moe_bench.trained import Size, build, source_text, train

ROUTINGS = ("uniform", "topics", "trained")
_TOPICS = 16
_STAY = 0.9
"""Likelihood that the next token is of the same topic."""
_SEED = 20_261_127
SIZES = {
    "uniform": Size(),
    "topics": Size(),
    "trained": Size(layers=4, hidden=128, experts=16, chosen=2, width=1024, vocab=128),
}
"""An expert takes 0.8 MB in the first two and 1.6 MB in the last."""


def make(routing: str, folder: Path, size: Size) -> None:
    """Write a model to a folder as transformers saves it, float32."""
    import torch

    if routing == "trained":
        train(size).save_pretrained(folder)
        return
    torch.manual_seed(_SEED)
    model = build(size)
    source = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        _steer(model, routing, size, source)
    model.save_pretrained(folder)


def _steer(model: Any, routing: str, size: Size, source: Any) -> None:
    """Set embeddings and routers."""
    import torch

    topics = torch.randn(_TOPICS, size.hidden, generator=source)
    own = torch.randn(size.vocab, size.hidden, generator=source)
    if routing == "topics":
        own = 2.0 * own + topics[torch.arange(size.vocab) % _TOPICS]
    model.model.embed_tokens.weight.copy_(own)
    for layer in model.model.layers:
        weight = torch.randn(size.experts, size.hidden, generator=source)
        if routing == "topics":
            for topic in topics:
                few = torch.randperm(size.experts, generator=source)[: size.chosen + 2]
                weight[few] += 0.15 * topic
        layer.mlp.gate.weight.copy_(weight / size.hidden**0.5)


def text(routing: str, size: Size, seed: int) -> Iterator[int]:
    """Tokens without end, as the routing has them."""
    if routing == "trained":
        yield from source_text(seed)
        return
    chooser = random.Random(f"{routing}/{seed}")
    per_topic = size.vocab // _TOPICS
    weights = [1 / (rank + 1) for rank in range(per_topic)]
    topic = chooser.randrange(_TOPICS)
    while True:
        if routing == "uniform":
            yield chooser.randrange(size.vocab)
            continue
        if chooser.random() > _STAY:
            topic = chooser.randrange(_TOPICS)
        yield chooser.choices(range(per_topic), weights)[0] * _TOPICS + topic
