"""Strategies for conversations that outgrow the window, on random conversations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_kernel.chat.window import cut_at, grid, places
from aios_kernel.chat.window_fit import Fitted, WindowFitter
from aios_kernel.chat.window_summary import Transcripts
from aios_kernel.engine.fake import fake_model
from aios_kernel.errors import ContextTooLong
from aios_kernel.syscalls import LlmChat, Message, Sampling, ToolCall, ToolSpec, WindowStrategy

CODEC = fake_model().codec
ROOM = 120
TOOLS = [ToolSpec("look")]


@st.composite
def steps(draw: st.DrawFn) -> list[Message]:
    """What an agent does in one go: it speaks, or calls tools whose results follow."""
    text = " ".join(["w"] * draw(st.integers(0, 6)))
    calls = [ToolCall(draw(st.sampled_from(["a", "b", "c"])), "look", "{}") for _ in range(draw(st.integers(0, 3)))]
    results = [Message("tool", "r " * draw(st.integers(1, 6)), tool_call_id=call.id) for call in calls]
    meanwhile = [Message(draw(st.sampled_from(["user", "assistant"])), "meanwhile")] if draw(st.booleans()) else []
    return [Message("assistant", text, tool_calls=calls), *meanwhile, *results]


@st.composite
def turns(draw: st.DrawFn) -> list[Message]:
    """A question and what is done about it; sometimes the system says something in between."""
    question = Message("user", "q " * draw(st.integers(1, 6)))
    said = [message for step in draw(st.lists(steps(), max_size=5)) for message in step]
    return [*([Message("system", "note")] if draw(st.integers(0, 9)) == 0 else []), question, *said]


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    system = [Message("system", "s " * draw(st.integers(1, 5)))] if draw(st.booleans()) else []
    return [*system, *(message for turn in draw(st.lists(turns(), min_size=1, max_size=12)) for message in turn)]


def numbered(messages: list[Message]) -> list[Message]:
    """The same messages, told apart by a first word of their own."""
    named = [f"m{index} {message.content}" for index, message in enumerate(messages)]
    return [Message(m.role, text, m.tool_calls, m.tool_call_id) for m, text in zip(messages, named, strict=True)]


def fit(fitter: WindowFitter, call: LlmChat, strategy: WindowStrategy, domain: bytes = b"") -> tuple[Fitted, int]:
    """The outcome, and how many summaries were asked for."""
    fitting, asked = fitter.fit(call, strategy, domain), 0
    try:
        question = next(fitting)
        while True:
            asked += 1
            assert len(CODEC.encode_chat(question)) + (question.sampling.max_tokens or 0) <= ROOM * 4
            question = fitting.send(f"summary {asked}")
    except StopIteration as end:
        return end.value, asked


def call_of(messages: list[Message], max_tokens: int | None = None) -> LlmChat:
    return LlmChat(messages=messages, tools=TOOLS, sampling=Sampling(max_tokens=max_tokens))


def unparted(messages: list[Message]) -> bool:
    """Whether each result follows a message that called for it."""
    called: set[str] = set()
    for message in messages:
        called |= {call.id for call in message.tool_calls}
        if message.role == "tool" and message.tool_call_id not in called:
            return False
    return True


@given(conversations())
def test_every_place_keeps_pairs_and_order_and_the_system(messages: list[Message]) -> None:
    messages = numbered(messages)
    for place in places(messages):
        cut = cut_at(messages, place)
        kept = [messages.index(message) for message in cut.kept]
        assert kept == sorted(kept)
        assert sorted(kept + [messages.index(message) for message in cut.dropped]) == list(range(len(messages)))
        assert all(message.role != "system" for message in cut.dropped)
        assert unparted(cut.kept)
        assert unparted(cut.dropped)
        spoken = [message for message in cut.kept if message.role != "system"]
        assert spoken[0].role == "user"


@given(conversations(), st.integers(1, 50))
def test_the_grid_ascends_by_steps_and_ends_at_the_last_place(messages: list[Message], step: int) -> None:
    weights = [len(CODEC.encode(message.content)) for message in messages]
    found = list(grid(messages, weights, step))
    assert found == sorted(set(found))
    assert found[-1:] == places(messages)[-1:]


@settings(deadline=None)
@given(conversations(), st.sampled_from([None, 1, 20, 10_000]))
def test_what_fits_has_room_for_its_answer(messages: list[Message], max_tokens: int | None) -> None:
    messages = numbered(messages)
    call = call_of(messages, max_tokens)
    fitter = WindowFitter(CODEC, ROOM, "fake")
    try:
        fitted, _ = fit(fitter, call, "drop_oldest_turns")
    except ContextTooLong:
        return
    assert fitted == fit(WindowFitter(CODEC, ROOM, "fake"), call, "drop_oldest_turns")[0]
    assert fitted.prompt == CODEC.encode_chat(fitted.call)
    assert len(fitted.prompt) + min(max_tokens or ROOM // 4, ROOM // 2) <= ROOM
    assert (fitted.cut is None) == (fitted.call == call)
    assert fitted.call.tools == TOOLS
    if fitted.cut is not None:
        assert fitted.cut.dropped_messages == len(messages) - len(fitted.call.messages) > 0
    assert unparted(fitted.call.messages)


@settings(deadline=None)
@given(conversations())
def test_a_conversation_that_grows_keeps_its_cut(messages: list[Message]) -> None:
    """Cuts move forward in big steps: in between, each prompt goes on from the one before."""
    messages = numbered(messages)
    fitter, moved, before = WindowFitter(CODEC, ROOM, "fake"), 0, list[Message]()
    for size in range(1, len(messages) + 1):
        if messages[size - 1].role == "assistant":
            continue  # nobody is asked here
        try:
            kept = fit(fitter, call_of(messages[:size], 1), "drop_oldest_turns")[0].call.messages
        except ContextTooLong:
            return
        moved += kept[: len(before)] != before
        before = kept
    total = sum(len(CODEC.encode(message.content)) for message in messages)
    assert moved <= 1 + total // ((ROOM - 40) // 2)


@settings(deadline=None)
@given(conversations())
def test_a_summary_is_made_once_and_stays(messages: list[Message]) -> None:
    messages = numbered(messages)
    fitter = WindowFitter(CODEC, ROOM * 4, "fake")
    messages = messages * 8
    call = call_of(messages, 1)
    try:
        fitted, asked = fit(fitter, call, "summarise")
    except ContextTooLong:
        return
    again, none = fit(fitter, call, "summarise")
    assert again == fitted
    assert none == 0
    if fitted.cut is None:
        assert asked == 0
        return
    assert asked >= 1
    first = next(message for message in fitted.call.messages if message.role != "system")
    assert first.role == "user"
    assert f"summary {asked}" in first.content
    assert all("summary" not in message.content for message in fitted.call.messages if message is not first)
    assert len(fitted.prompt) < ROOM * 4


def test_a_longer_conversation_is_summarised_from_the_summary_before() -> None:
    fitter = WindowFitter(CODEC, ROOM * 4, "fake")
    messages = [Message("user", f"m{index} " + "word " * 20) for index in range(30)]
    _, first = fit(fitter, call_of(messages[:25]), "summarise")
    asked: list[LlmChat] = []
    fitting = fitter.fit(call_of([*messages, Message("user", "more " * 150)]), "summarise", b"")
    try:
        question = next(fitting)
        while True:
            asked.append(question)
            question = fitting.send("another")
    except StopIteration:
        pass
    assert first >= 1
    assert f"already summarised: summary {first}" in asked[0].messages[0].content
    assert "m0 " not in asked[0].messages[0].content


def test_another_trust_domain_finds_no_summary() -> None:
    fitter = WindowFitter(CODEC, ROOM * 4, "fake")
    call = call_of([Message("user", "word " * 60) for _ in range(12)])
    assert fit(fitter, call, "summarise", b"one")[1] >= 1
    assert fit(fitter, call, "summarise", b"one")[1] == 0
    assert fit(fitter, call, "summarise", b"two")[1] >= 1


@pytest.mark.parametrize("strategy", ["drop_oldest_turns", "summarise"])
def test_a_system_prompt_alone_too_long_is_refused(strategy: WindowStrategy) -> None:
    messages = [Message("system", "rule " * 200), Message("user", "hello")]
    with pytest.raises(ContextTooLong, match="system prompt and the tools' schemas alone") as told:
        fit(WindowFitter(CODEC, ROOM, "fake"), call_of(messages), strategy)
    assert told.value.fix


def test_a_last_step_too_long_is_refused() -> None:
    with pytest.raises(ContextTooLong, match="what must stay"):
        fit(WindowFitter(CODEC, ROOM, "fake"), call_of([Message("user", "word " * 200)]), "drop_oldest_turns")


@given(st.text(alphabet="ab \n", max_size=400), st.integers(1, 40))
def test_pieces_of_a_transcript_are_whole(text: str, tokens: int) -> None:
    transcripts: Any = Transcripts(CODEC)
    pieces = list(transcripts._pieces(text, tokens))
    assert "".join(pieces) == text
    assert all(len(CODEC.encode(piece)) <= tokens or len(piece) < 2 for piece in pieces)
