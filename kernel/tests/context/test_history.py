"""How much of a program's earlier KV its next turn does not match: found, counted, and harmless."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aios_kernel.chat.history import history_keys
from aios_kernel.context.history import Conversations, common_length, same_beginning
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.scheduler.protocol import ProgramEnded
from aios_kernel.syscalls import LlmChat, Message, Sampling

FIRST = [Message(role="user", content="calculate 12 + 30")]


def turn(*contents: str) -> tuple[bytes, ...]:
    return history_keys([Message(role="user", content=content) for content in contents])


def test_only_the_next_turn_of_a_conversation_can_diverge() -> None:
    book = Conversations()
    book.note("p", turn("a", "b"), [1, 2, 3, 4, 5])
    assert book.divergence("p", turn("a", "b", "c"), [1, 2, 3, 4, 5, 6]) == 0
    assert book.divergence("p", turn("a", "b", "c"), [1, 2, 9, 4, 5, 6]) == 3
    assert book.divergence("p", turn("a", "b", "c", "d"), [1, 2]) == 3
    assert book.divergence("p", turn("a", "b"), [7]) == 0  # asked again
    assert book.divergence("p", turn("a", "x", "c"), [7]) == 0  # another conversation
    assert book.divergence("q", turn("a", "b", "c"), [7]) == 0  # another program's
    book.forget("p")
    assert book.divergence("p", turn("a", "b", "c"), [7]) == 0


def test_the_latest_turn_counts_and_old_conversations_are_forgotten() -> None:
    book = Conversations()
    book.note("p", turn("a"), [1, 2])
    book.note("p", turn("a", "b"), [1, 2, 3, 4])
    assert book.divergence("p", turn("a", "b", "c"), [1, 2, 3, 9]) == 1
    for number in range(20):
        book.note("p", turn(str(number)), [number])
    assert book.divergence("p", turn("a", "b", "c"), [7]) == 0
    assert book.divergence("p", turn("19", "x"), [7]) == 1


def test_of_several_answers_the_one_that_was_taken_counts() -> None:
    book = Conversations()
    for answer in ([1, 2, 3, 4], [1, 2, 5, 6, 7], [1, 2, 8]):
        book.note("p", turn("a"), answer)
    assert book.divergence("p", turn("a", "b"), [1, 2, 5, 6, 7, 9]) == 0
    assert book.divergence("p", turn("a", "b"), [1, 2, 5, 9]) == 1


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_what_diverges_is_what_is_behind_the_common_beginning(earlier: list[int], prompt: list[int]) -> None:
    book = Conversations()
    book.note("p", turn("a"), earlier)
    common = 0
    while common < min(len(earlier), len(prompt)) and earlier[common] == prompt[common]:
        common += 1
    assert book.divergence("p", turn("a", "b"), prompt) == len(earlier) - common


def ask(run: Any, messages: list[Message], program: str = "p") -> Any:
    generation = run.ask(LlmChat(messages=messages, sampling=Sampling(max_tokens=40)), program)
    (result,) = run.wait([generation])
    return generation, result


def test_a_faithful_history_is_reused_and_an_altered_one_is_counted(make_run: Any) -> None:
    run = make_run(policy=Fifo({}))
    run.dispatcher.start()
    generation, result = ask(run, FIRST)
    computed = len(generation.order.prompt) + result.usage.completion_tokens - 1
    answer = Message(role="assistant", content=result.text, tool_calls=result.tool_calls)
    more = Message(role="user", content="and now 5 + 6")
    faithful, said = ask(run, [*FIRST, answer, more])
    assert faithful.diverged == 0
    assert said.usage.cached_tokens >= computed // 16 * 16  # the tool result was appended, nothing prefilled again
    altered, _ = ask(run, [*FIRST, Message(role="assistant", content="what another program made of it"), more])
    prompt = len(generation.order.prompt)
    assert 0 < altered.diverged <= computed - prompt + 8
    assert run.dispatcher.contexts.tokens_diverged == altered.diverged
    run.dispatcher.stop()


def test_the_kv_of_a_living_program_outlasts_that_of_ended_ones(make_run: Any) -> None:
    run = make_run(policy=Fifo({}), kv_tokens=1024)
    run.dispatcher.start()
    first, _ = ask(run, FIRST, "alive")
    for number in range(12):  # several times the pool
        ask(run, [Message(role="user", content=f"{number} remember a long text " + "of words " * 20)], f"p{number}")
        run.dispatcher.observe(ProgramEnded(f"p{number}"))
    _, result = ask(run, FIRST, "alive")
    assert result.usage.cached_tokens >= (len(first.order.prompt) - 1) // 16 * 16
    run.dispatcher.observe(ProgramEnded("alive"))
    for number in range(12):
        ask(run, [Message(role="user", content=f"{number} remember other texts " + "of words " * 20)], f"q{number}")
        run.dispatcher.observe(ProgramEnded(f"q{number}"))
    _, result = ask(run, FIRST, "late")
    assert result.usage.cached_tokens < (len(first.order.prompt) - 1) // 16 * 16
    run.dispatcher.stop()


@given(
    same=st.integers(0, 200),
    one=st.lists(st.integers(0, 2), max_size=90),
    other=st.lists(st.integers(0, 2), max_size=90),
    less=st.integers(0, 300),
)
def test_common_beginnings_are_found_piece_by_piece(same: int, one: list[int], other: list[int], less: int) -> None:
    first, second = [*range(same), *one], [*range(same), *other]
    most = max(0, min(len(first), len(second)) - less)
    assert same_beginning(first, second, most) == common_length(first[:most], second[:most])
