"""Making a call fit the model's window by its declared strategy, and saying what that took."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from dataclasses import dataclass

import msgspec

from aios_kernel.chat.history import history_keys
from aios_kernel.chat.protocol import Codec
from aios_kernel.chat.window import Cut, cut_at, grid
from aios_kernel.chat.window_summary import Summaries, Transcripts, with_summary
from aios_kernel.errors import ContextTooLong
from aios_kernel.syscalls import LlmChat, Message, WindowCut, WindowStrategy

_ANSWER_SHARE = 4
"""An answer of unstated length has one part in so many of the window."""
_SUMMARY_SHARE = 8
"""A summary has at most one part in so many of the room for the prompt."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A call that fits, its prompt, and what was left out; `cut` is None when that is nothing."""

    call: LlmChat
    prompt: list[int]
    cut: WindowCut | None = None


Fitting = Generator[LlmChat, str, Fitted]
"""Yields calls whose answers it needs (summaries); at last gives the call that fits."""


class WindowFitter:
    """Applies strategies for one model.

    Args:
        codec: the model's.
        room: longest sequence, prompt and answer: the window, or the KV pool if that is smaller.
        model: its name, for errors.
    """

    def __init__(self, codec: Codec, room: int, model: str) -> None:
        self._codec = codec
        self._room = room
        self._model = model
        self._transcripts = Transcripts(codec)
        self._summaries = Summaries()

    def fit(self, call: LlmChat, strategy: WindowStrategy, domain: bytes) -> Fitting:
        """Work a call out; `domain` keeps the summaries of trust domains apart.

        `refuse` leaves the call as it is. Raises ContextTooLong when what must stay does not fit, and what encoding
        raises.
        """
        prompt = self._codec.encode_chat(call)
        limit = self._limit(call)
        if strategy == "refuse" or len(prompt) <= limit:
            return Fitted(call, prompt)
        room = limit - self._leading(call, limit)
        summary = max(1, room // _SUMMARY_SHARE) if strategy == "summarise" else 0
        weights = [self._weight(message) for message in call.messages]
        for place in grid(call.messages, weights, max(1, (room - summary) // 2)):
            cut = cut_at(call.messages, place)
            if self._size(call, cut.kept) + summary > limit:
                continue
            text = (yield from self._summary(call, place, summary, domain)) if summary else ""
            fitted = self._fitted(call, cut, text, strategy)
            if len(fitted.prompt) <= limit:
                return fitted
        raise self._too_long(len(prompt), limit)

    def _summary(self, call: LlmChat, place: int, tokens: int, domain: bytes) -> Generator[LlmChat, str, str]:
        """The summary of the messages before `place`, from that of a shorter beginning if there is one."""
        keys = history_keys(call.messages[:place])
        start, text = self._summaries.longest(domain, keys)
        spoken = [message for message in call.messages[start:place] if message.role != "system"]
        for ask in self._transcripts.asks(spoken, tokens, self._room) if start < place else ():
            text = (yield ask(text)) or text
        return self._summaries.keep(domain + keys[-1], text)

    def _fitted(self, call: LlmChat, cut: Cut, text: str, strategy: WindowStrategy) -> Fitted:
        fitting = msgspec.structs.replace(call, messages=with_summary(cut.kept, text))
        told = WindowCut(
            strategy=strategy,
            dropped_messages=len(cut.dropped),
            dropped_tokens=sum(self._weight(message) for message in cut.dropped),
            summary_tokens=len(self._codec.encode(text)),
        )
        return Fitted(fitting, self._codec.encode_chat(fitting), told)

    def _limit(self, call: LlmChat) -> int:
        """Tokens for the prompt: what the answer may need is kept free, but never more than half of the window."""
        answer = call.sampling.max_tokens or self._room // _ANSWER_SHARE
        return self._room - max(1, min(answer, self._room // 2))

    def _leading(self, call: LlmChat, limit: int) -> int:
        """Tokens of the system messages and the tools, which every prompt keeps. Raises ContextTooLong."""
        system = itertools.takewhile(lambda message: message.role == "system", call.messages)
        size = self._size(call, [*system, Message(role="user")])
        if size >= limit:
            raise ContextTooLong(
                f"the system prompt and the tools' schemas alone take {size:,} tokens; the window of {self._model} is "
                f"{self._room:,}, of which the prompt may fill {limit:,}",
                fix="shorten the system prompt, offer fewer tools, or ask for fewer max_tokens",
            )
        return size

    def _size(self, call: LlmChat, messages: list[Message]) -> int:
        return len(self._codec.encode_chat(msgspec.structs.replace(call, messages=messages)))

    def _weight(self, message: Message) -> int:
        calls = "".join(f" {call.name} {call.arguments}" for call in message.tool_calls)
        return len(self._codec.encode(message.content + calls))

    def _too_long(self, prompt: int, limit: int) -> ContextTooLong:
        return ContextTooLong(
            f"the prompt has {prompt:,} tokens, and what must stay of it (system messages, tools, the last step) does "
            f"not fit the {limit:,} that it may fill of the window of {self._model} ({self._room:,})",
            fix="shorten the last message or the tool's result, or ask for fewer max_tokens",
        )
