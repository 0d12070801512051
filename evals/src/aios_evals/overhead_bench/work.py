"""The work: questions of one length to a model whose greedy answers never end by themselves."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aios_evals.replay_model import random_model, write_tokenizer
from aios_kernel.syscalls import LlmChat, Message, Sampling

if TYPE_CHECKING:
    from aios_kernel.chat.protocol import Codec

PROMPT, NEW = 96, 48
_LETTERS = "aeioulnrstdmkpg"


def write_model(folder: Path, model: Any = None) -> None:
    """The replay model with a tokenizer as large as its vocabulary, trained on made-up words.

    Tokens that end an answer or show nothing get a logit of 0, so that every answer has its full length and every
    token is text.
    """
    import torch
    from transformers import AutoTokenizer

    chooser = random.Random(3)
    write_tokenizer(folder, [" ".join(_word(chooser) for _ in range(30_000))])
    model = model or random_model()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    head = model.get_output_embeddings().weight
    shown = [tokenizer.decode([token], skip_special_tokens=True) for token in range(len(head))]
    with torch.no_grad():
        head[[token for token, text in enumerate(shown) if not (text and text.isascii())]] = 0.0
    model.save_pretrained(folder, safe_serialization=True)


def questions(codec: Codec, chooser: random.Random, n: int, *, new: int = NEW, stream: bool = False) -> list[LlmChat]:
    """Different ones of `PROMPT` tokens each, to be answered greedily in `new` tokens."""
    sampling = Sampling(temperature=0.0, max_tokens=new)
    texts = [_text(codec, chooser) for _ in range(n)]
    return [LlmChat(messages=[Message("user", text)], sampling=sampling, stream=stream) for text in texts]


def _text(codec: Codec, chooser: random.Random) -> str:
    while True:
        words = [_word(chooser)]
        while (short := PROMPT - len(codec.encode_chat(LlmChat(messages=[Message("user", " ".join(words))])))) > 0:
            words += [_word(chooser) for _ in range(short // 6)] or ["a"] * short
        if not short:
            return " ".join(words)


def _word(chooser: random.Random) -> str:
    return "".join(chooser.choices(_LETTERS, k=chooser.randint(2, 9)))
