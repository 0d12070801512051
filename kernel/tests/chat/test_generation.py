"""Stop strings: the text before the first one comes out, however it is cut into pieces."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from aios_kernel.chat.generation import Generation, Order, StopFilter
from aios_kernel.engine.protocol import SamplingParams, StepOutput
from aios_kernel.syscalls import LlmChat, LlmDelta, LlmResult, Message

ALPHABET = st.text("abc", max_size=30)


@given(text=ALPHABET, stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), cuts=st.data())
def test_pieces_do_not_matter(text: str, stops: list[str], cuts: st.DataObject) -> None:
    stop_filter, shown, rest = StopFilter(tuple(stops)), "", text
    while rest and not stop_filter.hit:
        size = cuts.draw(st.integers(1, len(rest)))
        shown += stop_filter.push(rest[:size])
        rest = rest[size:]
        assert text.startswith(shown)
    if not stop_filter.hit:
        shown += stop_filter.finish()
    ends = [text.find(stop) for stop in stops if stop in text]
    # Pieces arrive in order, so the stop string that is complete first wins; its text is cut at its beginning.
    assert stop_filter.hit == bool(ends)
    if not ends:
        assert shown == text
    else:
        assert all(stop not in shown for stop in stops)


CALL = LlmChat(messages=[Message(role="user", content="hi")])


def generation(codec: Any, stop: tuple[str, ...] = (), max_tokens: int = 1000) -> Generation:
    order = Order("m", "p", "a", "g", "normal", b"", [1], SamplingParams(), max_tokens, stop)
    return Generation(1, order, codec, codec.stream(CALL), 0.0)


def run(made: Generation, tokens: list[int]) -> tuple[list[LlmDelta], LlmResult]:
    """Feed tokens until it ends."""
    context: Any = None
    deltas = []
    for token in tokens:
        delta = made.accept(StepOutput(context, 1, token))
        deltas += [delta] if delta is not None else []
        if made.ended is not None:
            break
    assert isinstance(made.ended, LlmResult)
    return deltas, made.ended


PIECES = st.lists(st.sampled_from(["a", "é", "🙂", "the", " ", "b", "你"]), max_size=12).map("".join)


@settings(deadline=None)
@given(
    text=PIECES, stops=st.lists(PIECES.filter(bool), max_size=2), kind=st.sampled_from(["byte_level", "byte_fallback"])
)
def test_stops_across_tokens_and_characters(codecs: Any, text: str, stops: list[str], kind: str) -> None:
    """The text up to the stop string that was complete first, and its pieces are whole characters of it."""
    codec = codecs(kind)
    tokens = [*codec.encode(text), min(codec.end_tokens)]
    said = codec.decode(tokens[:-1]).removeprefix(" ") if kind == "byte_fallback" else text
    deltas, result = run(generation(codec, tuple(stops)), tokens)
    assert "".join(delta.text for delta in deltas) == result.text
    assert said.startswith(result.text)
    assert "\ufffd" not in result.text
    assert result.finish_reason == "stop"
    ends = [said.find(stop) + len(stop) for stop in stops if stop in said]
    if not ends:
        assert result.text == said
    else:
        assert len(result.text) < min(ends)
        assert not any(stop in result.text for stop in stops)
        assert any(said[len(result.text) :].startswith(stop) for stop in stops)


@settings(deadline=None)
@given(
    text=PIECES,
    limit=st.integers(1, 20),
    kind=st.sampled_from(["byte_level", "byte_fallback"]),
    kept=st.booleans(),
)
def test_a_quiet_answer_is_the_same_and_shows_nothing_before_its_end(
    codecs: Any, text: str, limit: int, kind: str, kept: bool
) -> None:
    codec = codecs(kind)
    tokens = [*codec.encode(text), min(codec.end_tokens)]
    loud = generation(codec, max_tokens=limit)
    quiet = Generation(2, dataclasses.replace(loud.order, quiet=True), codec, codec.stream(CALL), 0.0)
    context: Any = None
    for token in tokens[: min(limit, len(tokens)) - 1]:
        assert not loud.keep(token)
        assert quiet.keep(token) if kept else quiet.accept(StepOutput(context, 1, token)) is None
        assert quiet.ended is None
    assert not quiet.keep(tokens[min(limit, len(tokens)) - 1])
    _, result = run(quiet, tokens[min(limit, len(tokens)) - 1 :])
    assert result == run(loud, tokens)[1]


def test_a_limit_in_the_middle_of_a_character_or_a_stop(codecs: Any) -> None:
    codec = codecs()
    tokens = codec.encode("a🙂b")
    _, result = run(generation(codec, max_tokens=3), tokens)
    assert (result.text, result.finish_reason, result.usage.completion_tokens) == ("a\ufffd", "length", 3)
    _, result = run(generation(codec, ("🙂c",), max_tokens=5), tokens)
    assert (result.text, result.finish_reason) == ("a🙂", "length")
