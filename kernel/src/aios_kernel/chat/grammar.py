"""Grammars that hold a model to a JSON schema or to tool calls, compiled by xgrammar."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec
import torch
import xgrammar
from xgrammar.structural_tag import (
    ConstStringFormat,
    Format,
    JSONSchemaFormat,
    OrFormat,
    SequenceFormat,
    StructuralTag,
    TagFormat,
    TagsWithSeparatorFormat,
)

from aios_kernel.chat.tool_format import HERMES_BEGIN, HERMES_END, MISTRAL_ARGS, MISTRAL_TAG, ToolFormat
from aios_kernel.engine.protocol import Grammar
from aios_kernel.errors import InvalidSchema
from aios_kernel.syscalls import LlmChat, ToolSpec

_MAX_SPACE = 1
"""White space between the parts of a JSON value: enough for `", "`, and no room to dawdle in."""
_CACHED = 256
"""Compiled grammars kept."""
_CONTROL = re.compile(rb"[\x00-\x09\x0b\x0c\x0e-\x1f]")
"""JSON text needs none of these bytes; xgrammar lets them into strings of limited length, where JSON forbids them."""
_XGRAMMAR_PLACE = re.compile(r"^\[[\d:]+\] \S+?:\d+: ")
"""Time and source line in front of xgrammar's messages."""


class _Dump(msgspec.Struct, frozen=True):
    """A grammar as text: the structural tag that it was compiled from, and the tokens that it has accepted."""

    tag: str
    tokens: list[int]


class MatcherGrammar:
    """See `aios_kernel.engine.protocol.Grammar`; the state is an xgrammar matcher.

    Args:
        matcher: the xgrammar matcher.
        ends: bit mask of the end tokens, int32, [1, ceil(vocab / 32)].
        tag: the structural tag that it was compiled from, as JSON.
        tokens: what the matcher has accepted.
    """

    def __init__(self, matcher: Any, ends: torch.Tensor, tag: str, tokens: Sequence[int] = ()) -> None:
        self._matcher = matcher
        self._ends = ends
        self._tag = tag
        self._tokens = list(tokens)

    def fill_mask(self, mask: Any, row: int) -> None:
        """Write the allowed tokens: end tokens only, once one was taken."""
        if self._matcher.is_terminated():
            mask[row] = self._ends[0]
        else:
            self._matcher.fill_next_token_bitmask(mask, row)

    def accept(self, token: int) -> None:
        """Advance. Raises ValueError for a token that the grammar does not allow."""
        if not self._matcher.is_terminated() and not self._matcher.accept_token(token):
            raise ValueError("it is not allowed here")
        self._tokens.append(token)

    def finished(self) -> bool:
        """Whether nothing but an end token may follow."""
        if self._matcher.is_terminated():
            return True
        if not self._matcher.is_completed():
            return False
        mask = torch.full_like(self._ends, -1)
        self._matcher.fill_next_token_bitmask(mask, 0)
        return not bool((mask & ~self._ends).any())

    def fork(self) -> Grammar:
        """An independent matcher in the same state."""
        return MatcherGrammar(self._matcher.fork(), self._ends, self._tag, self._tokens)

    def dump(self) -> str:
        """See `Grammar.dump`; `GrammarCompiler.load` reads it."""
        return msgspec.json.encode(_Dump(self._tag, self._tokens)).decode()


class GrammarCompiler:
    """Compiles grammars for one vocabulary. Thread-safe; the compiled grammars used last are kept.

    Args:
        vocabulary: bytes of each token; tokens without any are never allowed.
        width: of the model's logits.
        ends: the end tokens, at least one.
        tool_format: how the model writes tool calls.
    """

    def __init__(self, vocabulary: list[bytes], width: int, ends: frozenset[int], tool_format: ToolFormat) -> None:
        allowed = [b"" if _CONTROL.search(token) else token for token in vocabulary[:width]]
        info = xgrammar.TokenizerInfo(allowed, xgrammar.VocabType.RAW, vocab_size=width, stop_token_ids=sorted(ends))
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._format = tool_format
        self._ends = _bit_mask(ends, width)
        self._cache: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def grammar(self, call: LlmChat) -> Grammar | None:
        """The grammar for a call, None if it needs none. Raises InvalidSchema.

        A schema holds the whole answer; with tools and `tool_choice="auto"` the model may call tools instead.
        """
        named = call.tool_choice not in {"auto", "none", "required"}
        tools = [tool for tool in call.tools if not named or tool.name == call.tool_choice]
        if named or call.tool_choice == "required":
            return self._matcher([self._tool_calls(tools, many=call.parallel_tool_calls and not named)])
        if call.schema is None:
            return None
        forms: list[Format] = [_json(call.schema)]
        if tools and call.tool_choice == "auto":
            forms.append(self._tool_calls(tools, many=call.parallel_tool_calls))
        return self._matcher(forms)

    def load(self, dump: str) -> Grammar:
        """The grammar that `MatcherGrammar.dump` wrote down, in the same state. Raises ValueError for another text."""
        found = msgspec.json.decode(dump, type=_Dump)
        grammar = MatcherGrammar(xgrammar.GrammarMatcher(self._compiled(found.tag)), self._ends, found.tag)
        for token in found.tokens:
            grammar.accept(token)
        return grammar

    def _matcher(self, forms: list[Format]) -> Grammar:
        try:
            tag = StructuralTag(format=forms[0] if len(forms) == 1 else OrFormat(elements=forms)).model_dump_json()
            compiled = self._compiled(tag)
        except (RuntimeError, ValueError, TypeError) as error:
            raise InvalidSchema(
                f"the JSON schema cannot be compiled: {_XGRAMMAR_PLACE.sub('', str(error)).strip()}",
                fix="correct the schema, or leave the part out that is named above",
            ) from error
        return MatcherGrammar(xgrammar.GrammarMatcher(compiled), self._ends, tag)

    def _compiled(self, tag: str) -> Any:
        with self._lock:
            if tag in self._cache:
                self._cache.move_to_end(tag)
                return self._cache[tag]
        compiled = self._compiler.compile_structural_tag(tag)
        with self._lock:
            self._cache[tag] = compiled
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return compiled

    def _tool_calls(self, tools: list[ToolSpec], *, many: bool) -> Format:
        style = self._format.style
        if style == "hermes":
            gap = self._format.gap
            begin, end = f'{HERMES_BEGIN}{gap}{{"name": ', f"}}{gap}{HERMES_END}"
            return _tags(tools, begin, ', "arguments": ', end, separator=gap if many else None)
        if style == "llama":
            return _tags(tools, '{"name": ', ', "parameters": ', "}", separator=None)
        if self._format.args_marker:
            tags = [_tag(f"{MISTRAL_TAG}{tool.name}{MISTRAL_ARGS}", tool, "") for tool in tools]
            return TagsWithSeparatorFormat(tags=tags, separator="", at_least_one=True, stop_after_first=not many)
        calls = _tags(tools, '{"name": ', ', "arguments": ', "}", separator=", " if many else None)
        elements = [ConstStringFormat(value=f"{MISTRAL_TAG} ["), calls, ConstStringFormat(value="]")]
        return SequenceFormat(elements=elements)


def _tags(tools: list[ToolSpec], begin: str, middle: str, end: str, *, separator: str | None) -> Format:
    """One call of any of the tools, or with a separator one or more."""
    tags = [_tag(begin + json.dumps(tool.name, ensure_ascii=False) + middle, tool, end) for tool in tools]
    return TagsWithSeparatorFormat(
        tags=tags, separator=separator or "", at_least_one=True, stop_after_first=separator is None
    )


def _tag(begin: str, tool: ToolSpec, end: str) -> TagFormat:
    return TagFormat(begin=begin, content=_json(tool.parameters), end=end)


def _json(schema: dict[str, Any]) -> JSONSchemaFormat:
    """JSON that a schema allows; without a type or an alternative it is an object."""
    free = not {"type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"} & set(schema)
    return JSONSchemaFormat(json_schema={"type": "object", **schema} if free else schema, max_whitespace_cnt=_MAX_SPACE)


def _bit_mask(tokens: frozenset[int], width: int) -> torch.Tensor:
    bits = torch.zeros(-(-width // 32) * 32, dtype=torch.int64)
    bits[list(tokens)] = 1
    words = (bits.view(-1, 32) << torch.arange(32)).sum(dim=1)
    return words.to(torch.int32)[None]
