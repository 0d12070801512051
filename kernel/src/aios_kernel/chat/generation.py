"""One answer in the making: counts tokens, finds its end, turns tokens into deltas. Used by the dispatcher's thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from aios_kernel.chat.protocol import Codec, TextPiece, TextStream
from aios_kernel.engine.protocol import Grammar, SamplingParams, StepOutput, TokenScore
from aios_kernel.errors import AiosError
from aios_kernel.syscalls import FinishReason, LlmDelta, LlmResult, Priority, TokenLogprob, ToolCall, Usage

TIE_MARGIN = 1e-3
"""Two logits closer than this are a tie: neither choice is wrong (see the engine contract)."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a generation is to do, resolved: nothing is left to defaults."""

    model: str
    program: str
    agent: str
    group: str
    priority: Priority
    salt: bytes
    prompt: list[int]
    sampling: SamplingParams
    max_tokens: int
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None
    logprobs: bool = False
    history: tuple[bytes, ...] = ()
    """Keys of the beginnings of the conversation (`chat.history`)."""
    root: str = ""
    """The program at the top of the caller's family; empty: the caller."""
    deadline_s: float | None = None
    """When the caller gives up, in `time.monotonic()` seconds."""
    lora: str | None = None
    """The model's LoRA adapter."""
    quiet: bool = False
    """Nobody hears of the answer before its end, and nothing in its text ends it: it is made out of the tokens then."""


class StopFilter:
    """Ends the text before the first stop string; holds back what may become one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """The text that is safe to show."""
        if not self._stops or self.hit:
            return "" if self.hit else text
        text = self._held + text
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.hit, self._held = True, ""
            return text[: min(places)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, once nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0


@dataclass(slots=True)
class Generation:
    """An answer in the making. `ended` is set once, with a result or an error."""

    id: int
    order: Order
    codec: Codec
    stream: TextStream
    arrived_s: float
    index: int = 0
    """Which of several answers to one prompt."""
    first: Generation | None = None
    """The first of these; None: this is it."""
    generated: int = 0
    computed: int = 0
    """Tokens that went through the model for it."""
    cached: int = 0
    diverged: int = 0
    started_s: float | None = None
    ended: LlmResult | AiosError | None = None
    text: list[str] = field(default_factory=list[str])
    tool_calls: list[ToolCall] = field(default_factory=list[ToolCall])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    argmax: list[int] = field(default_factory=list[int])
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    counted: Usage | None = None
    """Tokens as the engine counted them, if it does."""
    ahead: Sequence[object] = ()
    """As long as there are tokens that it has emitted and not been given yet (`scheduler.stretch`)."""
    stops: StopFilter = field(init=False)
    _untold: list[int] = field(default_factory=list[int])
    """Tokens of a quiet answer that were not turned into text yet."""

    def __post_init__(self) -> None:
        self.stops = StopFilter(self.order.stop)

    def keep(self, token: int) -> bool:
        """Take a token of a quiet answer that only goes on; False: nothing was done, and `accept` has to look at it."""
        order = self.order
        if not order.quiet or token in self.codec.end_tokens or self.generated + 1 >= order.max_tokens:
            return False
        self.generated += 1
        self._untold.append(token)
        return True

    @property
    def unheard(self) -> int:
        """Tokens that `keep` is sure to take unless one of them ends the answer; 0 for an answer that is not quiet."""
        return self.order.max_tokens - 1 - self.generated if self.order.quiet else 0

    def keep_all(self, tokens: Sequence[int]) -> None:
        """`keep` of tokens that are known to carry the answer on; those that were `ahead`."""
        self.ahead = ()
        self.generated += len(tokens)
        self._untold += tokens

    def accept(self, output: StepOutput) -> LlmDelta | None:
        """Take an emitted token; gives what became visible. May set `ended`."""
        token, order = output.token, self.order
        assert token is not None
        self.generated += 1
        if order.sampling.forced and output.argmax is not None:
            self.argmax.append(output.argmax)
        if token in self.codec.end_tokens:
            return self._end("stop")
        if order.quiet:
            self._untold.append(token)
            return self._end("length") if self.generated >= order.max_tokens else None
        logprobs = self._logprob(output) if order.logprobs else None
        piece = self.stream.push(token)
        delta = self._show(piece, logprobs)
        self.counted = piece.usage or self.counted
        if self.stops.hit:
            self._close("stop")
        elif piece.end is not None:
            return _joined(delta, self._end(piece.end))
        elif self.generated >= order.max_tokens:
            return _joined(delta, self._end("length"))
        return delta

    def note_prompt(self, scores: Sequence[TokenScore]) -> None:
        """Take the log-probabilities of prompt tokens, in the prompt's order."""
        self.prompt_logprobs += [self._told(score.token, score.logprob, score.top) for score in scores]

    def fail(self, error: AiosError) -> None:
        """End with an error."""
        if self.ended is None:
            self.ended = error

    def usage(self) -> Usage:
        """Tokens so far."""
        return self.counted or Usage(
            prompt_tokens=len(self.order.prompt),
            cached_tokens=self.cached,
            completion_tokens=self.generated + len(self.ahead),
        )

    def _logprob(self, output: StepOutput) -> list[TokenLogprob]:
        if output.logprob is None or output.token is None:
            return []
        entry = self._told(output.token, output.logprob, output.top)
        self.logprobs.append(entry)
        return [entry]

    def _told(self, token: int, logprob: float, top: Sequence[tuple[int, float]]) -> TokenLogprob:
        others = [(self.codec.decode([other]), value) for other, value in top]
        return TokenLogprob(token=self.codec.decode([token]), logprob=logprob, top=others)

    def _show(self, piece: TextPiece, logprobs: list[TokenLogprob] | None = None) -> LlmDelta | None:
        text = self.stops.push(piece.text)
        if text:
            self.text.append(text)
        if not (piece.tool_calls or logprobs):
            return LlmDelta(text=text, index=self.index) if text else None
        self.tool_calls.extend(piece.tool_calls)
        return LlmDelta(text=text, tool_calls=list(piece.tool_calls), logprobs=logprobs or [], index=self.index)

    def _end(self, reason: FinishReason) -> LlmDelta | None:
        if self._untold:
            self._show(self.stream.push_all(self._untold))
        delta = self._show(self.stream.finish())
        if not self.stops.hit and (held := self.stops.finish()):
            self.text.append(held)
            delta = _joined(delta, LlmDelta(text=held, index=self.index))
        self._close(reason)
        return delta

    def _close(self, reason: FinishReason) -> None:
        self.ended = LlmResult(
            model=self.order.model,
            text="".join(self.text),
            tool_calls=self.tool_calls,
            finish_reason="tool_calls" if self.tool_calls and reason == "stop" else reason,
            usage=self.usage(),
            logprobs=self.logprobs,
            argmax=self.argmax,
            prompt_logprobs=self.prompt_logprobs,
        )


def _joined(first: LlmDelta | None, second: LlmDelta | None) -> LlmDelta | None:
    if first is None or second is None:
        return first or second
    return LlmDelta(
        text=first.text + second.text,
        tool_calls=[*first.tool_calls, *second.tool_calls],
        logprobs=[*first.logprobs, *second.logprobs],
        index=first.index,
    )


def combined(generations: Sequence[Generation]) -> LlmResult | None:
    """The result of all answers to one prompt; None until each has ended with one."""
    results = [generation.ended for generation in generations if isinstance(generation.ended, LlmResult)]
    if len(results) < len(generations):
        return None
    return msgspec.structs.replace(results[0], others=results[1:], usage=total_usage(generations))


def total_usage(generations: Sequence[Generation]) -> Usage:
    """Tokens of all answers to one prompt, which counts once."""
    usages = [generation.usage() for generation in generations]
    return msgspec.structs.replace(usages[0], completion_tokens=sum(usage.completion_tokens for usage in usages))
