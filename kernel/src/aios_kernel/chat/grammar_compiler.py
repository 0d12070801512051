"""Compiling what a call demands of its answer: a JSON schema, a regular expression, a choice, tool calls."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import Future
from typing import Any

import msgspec
import torch
import xgrammar

from aios_kernel.chat.bounded_numbers import bounded
from aios_kernel.chat.formats import ToolFormat
from aios_kernel.chat.formats.json_call import json_value
from aios_kernel.chat.formats.protocol import Structure
from aios_kernel.chat.grammar import Dump, MatcherGrammar
from aios_kernel.chat.grammar_cache import GrammarCache
from aios_kernel.chat.json_schema import narrowed
from aios_kernel.engine.protocol import Grammar
from aios_kernel.errors import Busy, InvalidSchema
from aios_kernel.syscalls import LlmChat, ToolSpec

_COMPILE_S = 10.0
_COMPILERS = 2
"""Compilations at a time; one that is given up on still runs to its end and keeps its place until then."""
_CONTROL = re.compile(rb"[\x00-\x09\x0b\x0c\x0e-\x1f]")
"""JSON text needs none of these bytes; xgrammar lets them into strings of limited length, where JSON forbids them."""
_JSON, _AMONG_TEXT = '"json_schema"', '"triggered_tags"'
_XGRAMMAR_PLACE = re.compile(r"^(\[[\d:]+\] \S+?:\d+: )?(Check failed: .*? is false: )?")
"""Time, source line and condition in front of xgrammar's messages."""


class GrammarCompiler:
    """Compiles grammars for one vocabulary. Thread-safe; the compiled grammars used last are kept.

    Args:
        vocabulary: bytes of each token; tokens without any are never allowed.
        width: of the model's logits.
        ends: the end tokens, at least one.
        tool_format: how the model writes tool calls.
    """

    def __init__(self, vocabulary: list[bytes], width: int, ends: frozenset[int], tool_format: ToolFormat) -> None:
        printable = [b"" if _CONTROL.search(token) else token for token in vocabulary[:width]]
        self._for_json = _compiler(printable, width, ends)
        self._for_text = _compiler(vocabulary[:width], width, ends)
        self._format = tool_format
        self._ends = _bit_mask(ends, width)
        self._cache = GrammarCache()
        self._places = threading.Semaphore(_COMPILERS)

    def grammar(self, call: LlmChat) -> Grammar | None:
        """The grammar for a call, None if it needs none.

        The text is held to `schema`, `regex` or `choice`; with tools and `tool_choice="auto"` the model may call tools
        instead. A model whose template knows no tools is held to the format that it was told of.

        Raises:
            InvalidSchema: it cannot be compiled, or no text satisfies it.
            Busy: too many grammars are being compiled.
        """
        form = self._form(call)
        return None if form is None else self._made(json.dumps({"type": "structural_tag", "format": form}))

    def load(self, dump: str) -> Grammar:
        """The grammar that `MatcherGrammar.dump` wrote down, in the same state. Raises ValueError for another text."""
        found = msgspec.json.decode(dump, type=Dump)
        try:
            grammar = self._made(found.tag)
        except InvalidSchema as error:
            raise ValueError(error.message) from error
        for token in found.tokens:
            grammar.accept(token)
        return grammar

    def _form(self, call: LlmChat) -> Structure | None:
        named = call.tool_choice not in {"auto", "none", "required"}
        must = named or call.tool_choice == "required"
        offered = [] if call.tool_choice == "none" else call.tools
        text = None if must else _text_form(call)
        if not offered or (not must and text is None and self._format.native):
            return text
        tools = [_narrowed(tool) for tool in offered if not named or tool.name == call.tool_choice]
        many = call.parallel_tool_calls and not named
        if not must and text is None:
            return self._format.among_text(tools, many=many)
        calls = self._format.calls(tools, many=many)
        return calls if text is None else {"type": "or", "elements": [text, calls]}

    def _made(self, tag: str) -> MatcherGrammar:
        compiled = self._cache.get(tag)
        if compiled is None:
            try:
                compiled = self._bounded(tag)
            except (RuntimeError, ValueError, TypeError) as error:
                raise _refused(_XGRAMMAR_PLACE.sub("", str(error)).strip()) from error
            self._cache.put(tag, compiled)
        matcher = xgrammar.GrammarMatcher(compiled)
        first = torch.zeros_like(self._ends)
        matcher.fill_next_token_bitmask(first, 0)
        if not bool(first.any()):
            raise _refused("no text of this model's tokens satisfies it")
        return MatcherGrammar(matcher, self._ends, tag)

    def _bounded(self, tag: str) -> Any:
        """Compile in a thread of its own, which can be given up on. Raises InvalidSchema, Busy, or xgrammar's error."""
        if not self._places.acquire(timeout=_COMPILE_S):
            raise Busy("too many grammars are being compiled", fix="send the call again", retry_after_s=_COMPILE_S)
        result: Future[Any] = Future()
        compiler = self._for_json if _JSON in tag and _AMONG_TEXT not in tag else self._for_text

        def work() -> None:
            try:
                result.set_result(compiler.compile_structural_tag(json.dumps(bounded(json.loads(tag)))))
            except Exception as error:  # noqa: BLE001 - it is raised where the result is waited for
                result.set_exception(error)
            finally:
                self._places.release()

        threading.Thread(target=work, name="aios-grammar", daemon=True).start()
        try:
            return result.result(_COMPILE_S)
        except TimeoutError:
            raise _refused(f"that takes more than {_COMPILE_S:g} s") from None


def _text_form(call: LlmChat) -> Structure | None:
    """What holds the answer's text."""
    if call.schema is not None:
        return json_value(narrowed(call.schema, strict=True))
    if call.regex is not None:
        return {"type": "regex", "pattern": call.regex}
    if call.choice:
        options = [{"type": "const_string", "value": text} for text in dict.fromkeys(call.choice)]
        return {"type": "or", "elements": options} if len(options) > 1 else options[0]
    return None


def _narrowed(tool: ToolSpec) -> ToolSpec:
    return ToolSpec(name=tool.name, parameters=narrowed({"type": "object", **tool.parameters}, strict=False))


def _compiler(vocabulary: list[bytes], width: int, ends: frozenset[int]) -> xgrammar.GrammarCompiler:
    info = xgrammar.TokenizerInfo(vocabulary, xgrammar.VocabType.RAW, vocab_size=width, stop_token_ids=sorted(ends))
    return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


def _refused(why: str) -> InvalidSchema:
    return InvalidSchema(
        f"the schema, regular expression or choice cannot be compiled: {why}",
        fix="correct it, or leave the part out that is named above",
    )


def _bit_mask(tokens: frozenset[int], width: int) -> torch.Tensor:
    bits = torch.zeros(-(-width // 32) * 32, dtype=torch.int64)
    bits[list(tokens)] = 1
    words = (bits.view(-1, 32) << torch.arange(32)).sum(dim=1)
    return words.to(torch.int32)[None]
