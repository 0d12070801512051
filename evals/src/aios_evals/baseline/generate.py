"""`transformers.generate` behind a lock: one call at a time, the whole prompt prefilled anew each time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aios_kernel.chat.codec import TransformersCodec
from aios_kernel.syscalls import LlmChat, LlmResult, Usage


def load_codec(path: Path) -> TransformersCodec:
    """The codec of a model folder: the kernel's own, so that both sides see the same tokens."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    config: Any = AutoConfig.from_pretrained(path)
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    window = min(config.max_position_embeddings, tokenizer.model_max_length)
    generation = GenerationConfig.from_pretrained(path)
    return TransformersCodec(tokenizer, generation, window=window, width=config.vocab_size)


@dataclass(slots=True)
class Choices:
    """The model's own greedy choice at each position of an answer, and how far the second best was behind."""

    argmax: list[int] = field(default_factory=list[int])
    margin: list[float] = field(default_factory=list[float])


class LockedGenerate:
    """A loaded model that answers chats one after the other. Thread-safe by its lock, which is the point."""

    def __init__(self, model: Any, codec: TransformersCodec, name: str) -> None:
        self._model = model
        self._codec = codec
        self._name = name
        self._lock = threading.Lock()
        self.tokens_computed = 0

    @classmethod
    def load(cls, path: Path) -> LockedGenerate:
        """Load model and tokenizer from a folder, in float32."""
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
        return cls(model.eval(), load_codec(path), path.name)

    def answer(self, call: LlmChat, forced: str | None) -> tuple[LlmResult, Choices]:
        """Answer greedily, or with the forced text (every token computed). Blocks while another call runs."""
        prompt = self._codec.encode_chat(call)
        end = min(self._codec.end_tokens)
        tokens = [*self._codec.encode(forced), end] if forced is not None else None
        room = self._codec.window - len(prompt)
        limit = len(tokens) if tokens else min(call.sampling.max_tokens or room, room)
        choices = Choices()
        with self._lock:
            emitted = self._generate(prompt, limit, tokens, choices)
            self.tokens_computed += len(prompt) + max(0, len(emitted) - 1)
        return self._result(call, prompt, emitted), choices

    def _generate(self, prompt: list[int], limit: int, tokens: list[int] | None, choices: Choices) -> list[int]:
        import torch
        from transformers import LogitsProcessorList

        processors = LogitsProcessorList([_Watch(len(prompt), tokens, choices)])
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                do_sample=False,
                eos_token_id=None if tokens else sorted(self._codec.end_tokens),
                logits_processor=processors,
            )
        return output[0, len(prompt) :].tolist()

    def _result(self, call: LlmChat, prompt: list[int], emitted: list[int]) -> LlmResult:
        stream = self._codec.stream(call)
        ended = bool(emitted) and emitted[-1] in self._codec.end_tokens
        pieces = [stream.push(token) for token in (emitted[:-1] if ended else emitted)]
        pieces.append(stream.finish())
        calls = [tool_call for piece in pieces for tool_call in piece.tool_calls]
        return LlmResult(
            model=call.model or self._name,
            text="".join(piece.text for piece in pieces),
            tool_calls=calls,
            finish_reason="tool_calls" if calls else "stop" if ended else "length",
            usage=Usage(prompt_tokens=len(prompt), completion_tokens=len(emitted)),
        )


class _Watch:
    """A logits processor that notes the greedy choice and, when a text is forced, lets only its token through."""

    def __init__(self, prompt: int, forced: list[int] | None, choices: Choices) -> None:
        self._prompt = prompt
        self._forced = forced
        self._choices = choices

    def __call__(self, ids: Any, scores: Any) -> Any:
        best = scores[0].topk(2)
        self._choices.argmax.append(int(best.indices[0]))
        self._choices.margin.append(float(best.values[0] - best.values[1]))
        if self._forced is not None:
            scores = scores.new_full(scores.shape, float("-inf"))
            scores[0, self._forced[ids.shape[1] - self._prompt]] = 0.0
        return scores
