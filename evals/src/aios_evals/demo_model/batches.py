"""Turns conversations into token batches: rows of like length, with the loss on the assistant's words only."""

import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from aios_evals.demo_model.data import Conversation, conversation, messages, schema
from aios_evals.demo_model.tokenizer import ASSISTANT, END, PAD, token_id

IGNORED: Final = -100
#: Token ids of a conversation and its labels.
Row = tuple[list[int], list[int]]
#: A number of batches, and the longest conversation in them.
Phase = tuple[int, int]
_POOL: Final = 2048
_ROUNDING: Final = 16


def render(tokenizer: PreTrainedTokenizerFast, talk: Conversation) -> str:
    """The text of a whole conversation; of a summary without its tools, as the model will see it."""
    tools: list[Any] = [] if talk.summary else [schema(name) for name in talk.tools]
    return str(tokenizer.apply_chat_template(messages(talk), tools=tools, tokenize=False))


def labels(ids: list[int], assistant: int, end: int, last_only: bool) -> list[int]:
    """Keep what the assistant says, up to and with its end token; -100 elsewhere."""
    out, speaking = [IGNORED] * len(ids), False
    start = max(at for at, token in enumerate(ids) if token == assistant) if last_only else 0
    for at, token in enumerate(ids):
        if speaking:
            out[at] = token
        speaking = (token == assistant and at >= start) or (speaking and token != end)
    return out


def batches(tokenizer: PreTrainedTokenizerFast, size: int, phases: Iterable[Phase]) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches, the same ones in every run.

    Args:
        tokenizer: The tokenizer with its chat template.
        size: Tokens of a batch, padding included.
        phases: How many batches of conversations up to which length.

    Yields:
        Token ids and labels, both of shape (rows, tokens).
    """
    pad = token_id(tokenizer, PAD)
    order, pools = random.Random(0), itertools.count(0, _POOL)
    for steps, longest in phases:
        groups: list[list[Row]] = []
        for _ in range(steps):
            if not groups:
                groups = _groups(_pool(tokenizer, next(pools), longest), size)
                order.shuffle(groups)
            yield _padded(groups.pop(), pad)


def _groups(rows: list[Row], size: int) -> list[list[Row]]:
    """Put rows of like length together, so that little is spent on padding."""
    groups: list[list[Row]] = [[]]
    for row in sorted(rows, key=lambda row: len(row[0])):
        if groups[-1] and (len(groups[-1]) + 1) * len(row[0]) > size:
            groups.append([])
        groups[-1].append(row)
    return groups


def _pool(tokenizer: PreTrainedTokenizerFast, start: int, longest: int) -> list[Row]:
    talks = [conversation(seed, "train") for seed in range(start, start + _POOL)]
    encoded = tokenizer([render(tokenizer, talk) for talk in talks], add_special_tokens=False)["input_ids"]
    assistant, end = token_id(tokenizer, ASSISTANT), token_id(tokenizer, END)
    pairs = [(ids, labels(ids, assistant, end, talk.summary)) for ids, talk in zip(encoded, talks, strict=True)]
    return [pair for pair in pairs if len(pair[0]) <= longest]


def _padded(group: list[Row], pad: int) -> tuple[Tensor, Tensor]:
    """Pad on the right: a causal model never looks there, so no mask is needed."""
    width = -(-max(len(ids) for ids, _ in group) // _ROUNDING) * _ROUNDING
    ids = [row + [pad] * (width - len(row)) for row, _ in group]
    targets = [row + [IGNORED] * (width - len(row)) for _, row in group]
    return torch.tensor(ids), torch.tensor(targets)
