"""A deterministic model without weights, for tests and for measuring everything but the model.

It is engine and codec in one, because its engine answers from the prompt's text. Tokens are words, interned as they
come. The reply depends on the last messages only; the first rule that fits wins:

    trailing tool messages          tool said: <contents joined by " | ">
    lines `call NAME {json}`        one tool call a line (when tools are offered)
    a line `json TEXT`              TEXT
    a line `say TEXT`               TEXT
    a line `think N`                N words: w0 w1 w2 ...
    a line `ponder`                 words until it is stopped, a millisecond apiece (the window lasts a minute)
    a choice was given              its first string
    a schema was given              a smallest instance of it
    anything else                   echo: <the last user message>
"""

from __future__ import annotations

import itertools
import math
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from aios_kernel.chat.checks import check_chat
from aios_kernel.chat.protocol import LoadedModel, TextPiece
from aios_kernel.engine.protocol import (
    Capabilities,
    Grammar,
    KvExhausted,
    SamplingParams,
    StepOutput,
)
from aios_kernel.errors import InvalidSchema, SnapshotError, Unsupported
from aios_kernel.syscalls import LlmChat, Message, ToolCall

_ENDLESS = 1 << 16
"""Words; more than any window in the tests."""
_WORDS = re.compile(r"\s*\S+|\s+$")
_END = 0
_PONDERED = "hm "
"""The word that a reply without end repeats."""
_WIDTH = 32
"""Dimensions of a text's vector."""
_REPLY, _CALL = "!\x1d", "!\x1f"
"""Mark tokens that are a whole reply, and a whole tool call, as JSON. No text has such a word: words end at spaces."""

_Parts: TypeAlias = list[str | tuple[str, str]]
"""A reply: texts, and tool calls by name and arguments; empty: one without end."""


class _Vocabulary:
    """Words interned in the order of their appearance; id 0 is the end of a text."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {"": _END}
        self._words: list[str] = [""]
        self._lock = threading.Lock()

    def encode(self, text: str) -> list[int]:
        return [self.id_of(word) for word in _WORDS.findall(text)]

    def id_of(self, word: str) -> int:
        number = self._ids.get(word)
        if number is None:
            with self._lock:
                number = self._ids.setdefault(word, len(self._words))
                if number == len(self._words):
                    self._words.append(word)
        return number

    def word(self, token: int) -> str:
        return self._words[token]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self._words[token] for token in tokens)


class FakeCodec:
    """The codec half. The reply is worked out here and travels as the last token of the prompt."""

    end_tokens = frozenset({_END})
    defaults = SamplingParams()

    def __init__(self, vocabulary: _Vocabulary, window: int) -> None:
        self.window = window
        self._vocabulary = vocabulary

    def encode_chat(self, call: LlmChat) -> list[int]:
        """Words of all messages; behind them one token that stands for the reply."""
        check_chat(call)
        tokens = self._vocabulary.encode("\n".join(f"<{m.role}> {m.content}" for m in call.messages))
        return [*tokens, self._vocabulary.id_of(_marked(_REPLY, self._reply(call)))]

    def encode(self, text: str) -> list[int]:
        """Words of a text."""
        return self._vocabulary.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of words."""
        return self._vocabulary.decode(tokens)

    def stream(self, call: LlmChat) -> FakeStream:
        """A stream for one answer."""
        return FakeStream(self._vocabulary)

    def grammar(self, call: LlmChat) -> Grammar | None:
        """No grammar: the reply obeys schema and choice by itself. Refuses what is no schema, and expressions."""
        if call.regex is not None:
            raise Unsupported("the fake model knows no regular expressions", fix="serve the demo model")
        kind = (call.schema or {}).get("type", "object")
        if not isinstance(kind, str | list):
            raise InvalidSchema(f"the JSON schema's type is {kind!r}", fix="pass a valid JSON schema")
        return None

    def load_grammar(self, dump: str) -> Grammar:
        """There is none to load."""
        raise Unsupported("the fake model has no grammars", fix="serve the demo model")

    def _reply(self, call: LlmChat) -> _Parts:
        said = list(reversed([*itertools.takewhile(lambda m: m.role == "tool", reversed(call.messages))]))
        if said:
            return ["tool said: " + " | ".join(message.content for message in said)]
        user = next((message for message in reversed(call.messages) if message.role == "user"), Message(role="user"))
        lines = user.content.splitlines()
        calls = [line.removeprefix("call ").partition(" ") for line in lines if line.startswith("call ")]
        if calls and call.tools and call.tool_choice != "none":
            return [(name, arguments or "{}") for name, _, arguments in calls]
        if call.choice:
            return [call.choice[0]]
        return _text_reply(lines, user.content, call.schema)


def _text_reply(lines: list[str], content: str, schema: dict[str, Any] | None) -> _Parts:
    for line in lines:
        verb, _, rest = line.partition(" ")
        if verb in {"json", "say"}:
            return [rest]
        if verb == "think" and rest.strip().isdigit():
            return [" ".join(f"w{number}" for number in range(int(rest)))]
        if line == "ponder":
            return []
    if schema is not None:
        return [msgspec.json.encode(_instance(schema, schema)).decode()]
    return [f"echo: {content}"]


def _marked(mark: str, value: Any) -> str:
    return mark + msgspec.json.encode(value).decode()


def _instance(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """A smallest instance of the common kinds of schema."""
    if "$ref" in schema:
        target: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        return _instance(target, root)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _instance(schema[key][0], root)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _instance(properties[name], root) for name in schema.get("required", properties)}
    if kind == "array":
        return [_instance(schema.get("items", {}), root)] * schema.get("minItems", 0)
    return {"string": "text", "integer": 1, "number": 1.5, "boolean": True}.get(str(kind))


class FakeStream:
    """Words as they come; a tool-call token becomes a `ToolCall`."""

    def __init__(self, vocabulary: _Vocabulary) -> None:
        self._vocabulary = vocabulary

    def push(self, token: int) -> TextPiece:
        """One word."""
        word = self._vocabulary.word(token)
        if not word.startswith(_CALL):
            return TextPiece(word)
        name, arguments = msgspec.json.decode(word.removeprefix(_CALL))
        return TextPiece(tool_calls=(ToolCall(id=f"call_{uuid.uuid4().hex[:12]}", name=name, arguments=arguments),))

    def push_all(self, tokens: Sequence[int]) -> TextPiece:
        """Several."""
        text = self._vocabulary.decode(tokens)
        if _CALL not in text:
            return TextPiece(text)
        pieces = [self.push(token) for token in tokens]
        calls = tuple(call for piece in pieces for call in piece.tool_calls)
        return TextPiece("".join([piece.text for piece in pieces]), calls)

    def finish(self) -> TextPiece:
        """Nothing is held back."""
        return TextPiece()


@dataclass(slots=True)
class FakeContext:
    """A sequence; `reply` is what it will emit, token by token."""

    tokens: list[int]
    cached: int
    sampling: SamplingParams
    reply: list[int]
    computed: int = 0
    emitted: int = 0

    @property
    def pending(self) -> int:
        """Tokens not computed yet."""
        return len(self.tokens) - self.computed


@dataclass(slots=True)
class FakeSnapshot:
    """A context off the device."""

    context: FakeContext
    fingerprint: str
    nbytes: int = 0
    tokens: list[int] = field(init=False)
    computed: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens, self.computed = self.context.tokens, self.context.computed

    def save(self, path: Path) -> None:
        """Not offered: its words are numbered anew in every process."""
        raise Unsupported("the fake engine writes no snapshots", fix="serve the demo model")


class FakeEngine:
    """The engine half: bookkeeping of a KV pool in whole blocks, no computation."""

    name = "fake"
    fingerprint = "fake-1"

    def __init__(
        self,
        vocabulary: _Vocabulary,
        kv_tokens: int,
        max_batch: int,
        block_size: int = 16,
        cost_s: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self._vocabulary = vocabulary
        self._step_s, self._token_s = cost_s
        self._live: dict[int, FakeContext] = {}
        self._used = 0
        self._pondered = vocabulary.id_of(_PONDERED)
        self._size = block_size
        self.capabilities = Capabilities(
            step_control=True,
            fork=True,
            snapshot=True,
            logprobs=True,
            embed=True,
            block_size=block_size,
            kv_tokens=kv_tokens // block_size * block_size,
            max_batch=max_batch,
        )

    def open(
        self,
        tokens: Sequence[int],
        *,
        sampling: SamplingParams,
        grammar: Grammar | None = None,
        lora: str | None = None,
        salt: bytes = b"",
    ) -> FakeContext:
        """Start a context; the reply stands behind the prompt's last token."""
        if lora is not None:
            raise Unsupported(f"the fake engine serves no LoRA, and {lora!r} was asked for", fix="leave lora out")
        context = FakeContext(list(tokens), 0, sampling, self._reply(tokens[-1]))
        self._live[id(context)] = context
        return context

    def append(self, context: FakeContext, tokens: Sequence[int]) -> None:
        """Add tokens; the last one brings a new reply."""
        context.tokens.extend(tokens)
        context.reply, context.emitted = self._reply(tokens[-1]), 0

    def step(self, plan: Sequence[tuple[FakeContext, int]]) -> list[StepOutput]:
        """Advance every context of the plan."""
        parts = [(context, min(tokens, len(context.tokens) - context.computed)) for context, tokens in plan]
        need = sum([self.kv_need(context, tokens) for context, tokens in parts])
        if need > self.kv_free():
            raise KvExhausted
        if self._step_s or self._token_s:
            time.sleep(self._step_s + self._token_s * sum([tokens for _, tokens in parts]))
        self._used += need
        return [self._advance(context, tokens) for context, tokens in parts]

    def fork(
        self,
        context: FakeContext,
        *,
        at: int | None = None,
        sampling: SamplingParams | None = None,
        grammar: Grammar | None = None,
    ) -> FakeContext:
        """An independent copy; blocks are not shared."""
        if at is not None and not 0 < at <= len(context.tokens):
            raise ValueError(f"a context of {len(context.tokens)} tokens cannot be forked at {at}")
        copy = _twin(context) if at is None else self._beginning(context, at, sampling or context.sampling)
        if self._blocks(copy.computed) > self.kv_free():
            raise KvExhausted
        self._adopt(copy)
        return copy

    def snapshot(self, context: FakeContext) -> FakeSnapshot:
        """Take a context off the device."""
        self.release(context)
        return FakeSnapshot(context, self.fingerprint)

    def restore(self, snapshot: FakeSnapshot) -> FakeContext:
        """Bring it back."""
        if snapshot.fingerprint != self.fingerprint:
            raise SnapshotError(f"a snapshot of {snapshot.fingerprint} cannot continue on {self.fingerprint}")
        if self._blocks(snapshot.context.computed) > self.kv_free():
            raise KvExhausted
        self._adopt(snapshot.context)
        return snapshot.context

    def release(self, context: FakeContext) -> None:
        """Free its blocks."""
        if self._live.pop(id(context), None) is not None:
            self._used -= self._blocks(context.computed)

    def embed(self, texts: Sequence[Sequence[int]]) -> Iterator[list[list[float]]]:
        """Counts of the words' numbers, modulo the width; one text a forward."""
        return (_counted(tokens) for tokens in texts)

    def kv_free(self) -> int:
        """Free tokens of the pool."""
        return self.capabilities.kv_tokens - self._used

    def kv_need(self, context: FakeContext, n_tokens: int) -> int:
        """New blocks, in tokens."""
        size, computed = self._size, context.computed
        return (-(-(computed + n_tokens) // size) + -computed // size) * size

    def close(self) -> None:
        """Forget everything."""
        self._live.clear()
        self._used = 0

    def _beginning(self, context: FakeContext, at: int, sampling: SamplingParams) -> FakeContext:
        computed = min(context.computed, at - 1)
        return FakeContext(context.tokens[:at], computed, sampling, self._reply(context.tokens[at - 1]), computed)

    def _adopt(self, context: FakeContext) -> None:
        self._live[id(context)] = context
        self._used += self._blocks(context.computed)

    def _advance(self, context: FakeContext, tokens: int) -> StepOutput:
        context.computed += tokens
        if context.computed < len(context.tokens):
            return StepOutput(context, tokens)
        forced = context.sampling.forced
        choices = forced if context.emitted < len(forced) else context.reply
        token = choices[context.emitted] if context.emitted < len(choices) else _END
        if token == self._pondered:
            time.sleep(0.001)
        context.emitted += 1
        context.tokens.append(token)
        return StepOutput(context, tokens, token, token, margin=1.0, logprob=0.0, top=[(token, 0.0)])

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._size) * self._size

    def _reply(self, marker: int) -> list[int]:
        word = self._vocabulary.word(marker)
        if not word.startswith(_REPLY):
            return self._vocabulary.encode("echo")
        parts = msgspec.json.decode(word.removeprefix(_REPLY), type=_Parts)
        return [token for part in parts for token in self._tokens(part)] if parts else [self._pondered] * _ENDLESS

    def _tokens(self, part: str | tuple[str, str]) -> list[int]:
        if isinstance(part, str):
            return self._vocabulary.encode(part)
        return [self._vocabulary.id_of(_marked(_CALL, part))]


def _twin(context: FakeContext) -> FakeContext:
    return FakeContext(
        [*context.tokens], context.cached, context.sampling, context.reply, context.computed, context.emitted
    )


def _counted(tokens: Sequence[int]) -> list[list[float]]:
    counts = [0.0] * _WIDTH
    for token in tokens:
        counts[token % _WIDTH] += 1.0
    norm = math.hypot(*counts)
    return [[count / norm for count in counts]]


def fake_model(
    *,
    kv_tokens: int = 1 << 20,
    max_batch: int = 1024,
    window: int = 1 << 16,
    step_us: int = 0,
    token_us: int = 0,
) -> LoadedModel:
    """The fake model, ready to serve; a step takes `step_us` and `token_us` for each of its tokens."""
    vocabulary = _Vocabulary()
    engine = FakeEngine(vocabulary, kv_tokens, max_batch, cost_s=(step_us / 1e6, token_us / 1e6))
    return LoadedModel("fake", engine, FakeCodec(vocabulary, window))
