"""Conversations that outgrow the window, through a real kernel: nothing is dropped in silence."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from aios_kernel.client import Client, connect, stop_in_process
from aios_kernel.config import Config, load
from aios_kernel.errors import ConfigError, ContextTooLong, DeadlineExceeded, InvalidRequest, OutOfMemory
from aios_kernel.syscalls import (
    AgentSpawn,
    KernelInfo,
    KernelPs,
    KernelStatus,
    KernelTrace,
    LlmChat,
    LlmDelta,
    LlmResult,
    Message,
    Ok,
    Programs,
    Sampling,
    Span,
    ToolCall,
    ToolSpec,
    Trace,
    WindowStrategy,
)

MakeClient = Callable[..., Client]
POOL = 256
BLOCK = 16
LONG = [Message("system", "You count."), *(Message("user", f"say n{n} " + "word " * 20) for n in range(20))]


@pytest.fixture
def make_client(tmp_path: Path) -> Generator[MakeClient, None, None]:
    configs: list[Config] = []

    def make(**settings: Any) -> Client:
        chosen: dict[str, Any] = {"model": "fake", "kv_tokens": POOL, **settings}
        config = Config(kernel="inprocess", home=str(tmp_path / "aios"), embedder="hash", vectors="exact", **chosen)
        configs.append(config)
        return Client(connect(config, client="test"))

    yield make
    for config in configs:
        stop_in_process(config)


def ask(client: Client, messages: list[Message], program: str | None = None, **options: Any) -> LlmResult:
    call = LlmChat(messages=messages, sampling=Sampling(max_tokens=20), **options)
    answer = client.call(call, program=program)
    assert isinstance(answer, LlmResult)
    return answer


def chats(client: Client) -> list[Span]:
    answer = client.call(KernelTrace())
    assert isinstance(answer, Trace)
    return [span for span in answer.spans if span.syscall == "llm.chat"]


def status(client: Client) -> KernelStatus:
    answer = client.call(KernelInfo())
    assert isinstance(answer, KernelStatus)
    return answer


def test_without_a_strategy_it_is_refused(make_client: MakeClient) -> None:
    client = make_client()
    with pytest.raises(OutOfMemory):
        ask(client, LONG)
    assert status(client).windows_cut == 0


def test_what_was_dropped_is_told_three_times(make_client: MakeClient) -> None:
    client = make_client()
    answer = ask(client, LONG, window="drop_oldest_turns")
    assert answer.text.startswith("n19")
    assert answer.window is not None
    assert answer.window.strategy == "drop_oldest_turns"
    assert answer.window.dropped_messages > 0
    assert answer.usage.prompt_tokens + 20 <= POOL
    (span,) = chats(client)
    (mark,) = [mark for mark in span.marks if mark.kind == "cut"]
    assert f"{answer.window.dropped_messages} messages" in mark.detail
    assert span.queued_s <= mark.at_s <= span.ended_s
    told = status(client)
    assert (told.windows_cut, told.window_tokens_dropped) == (1, answer.window.dropped_tokens)


def test_a_stream_ends_with_what_was_dropped(make_client: MakeClient) -> None:
    call = LlmChat(messages=LONG, window="drop_oldest_turns", stream=True, sampling=Sampling(max_tokens=20))
    *pieces, last = make_client().stream(call)
    assert all(isinstance(piece, LlmDelta) for piece in pieces)
    assert isinstance(last, LlmResult)
    assert last.window is not None


def test_what_fits_is_left_alone(make_client: MakeClient) -> None:
    assert ask(make_client(), LONG[:3], window="summarise").window is None


@pytest.mark.parametrize("strategy", ["drop_oldest_turns", "summarise"])
def test_declared_in_the_configuration_for_all(make_client: MakeClient, strategy: WindowStrategy) -> None:
    client = make_client(window=strategy)
    answer = ask(client, LONG)
    assert answer.window is not None
    assert answer.window.strategy == strategy
    with pytest.raises(OutOfMemory):
        ask(client, LONG, window="refuse")


def test_declared_for_a_program_and_inherited(make_client: MakeClient) -> None:
    client = make_client()
    assert client.call(AgentSpawn("p", "parent", window="drop_oldest_turns"), program="p") == Ok()
    assert client.call(AgentSpawn("c", "child", parent="p"), program="c") == Ok()
    assert ask(client, LONG, "c").window is not None


def test_a_summary_is_a_call_of_the_same_program_made_once(make_client: MakeClient) -> None:
    client = make_client(window="summarise")
    client.call(AgentSpawn("p", "talker"), program="p")
    answer = ask(client, LONG, "p")
    assert answer.window is not None
    assert answer.window.summary_tokens > 0
    made = [span for span in chats(client) if span.program == "p"]
    assert len(made) > 1
    again = ask(client, [*LONG, Message("assistant", "n19"), Message("user", "say next")], "p")
    assert again.text == "next"
    assert again.window is not None
    assert len(chats(client)) == len(made) + 1, "the summary was made again"
    programs = client.call(KernelPs())
    assert isinstance(programs, Programs)
    (row,) = [row for row in programs.programs if row.program == "p"]
    assert row.llm_calls == len(made) + 1
    held = POOL - status(client).kv_free_tokens
    assert held - row.resident_tokens in range(BLOCK), "more is held than the program's parked context"


def test_a_deadline_ends_the_summary_too(make_client: MakeClient) -> None:
    client = make_client(window="summarise", policy="fifo")  # which keeps nothing of the summaries that ended
    client.call(AgentSpawn("p", "talker"), program="p")
    endless = LlmChat(messages=[Message("user", "word " * 20 + "\nponder\n") for _ in range(40)])
    with pytest.raises(DeadlineExceeded):
        client.call(endless, program="p", timeout_s=0.02)
    ends_at = time.monotonic() + 10
    while status(client).kv_free_tokens < POOL:  # within a step
        assert time.monotonic() < ends_at
    assert {span.outcome for span in chats(client)} <= {"ok", "cancelled", "deadline_exceeded"}


def test_a_system_prompt_alone_too_long_is_refused(make_client: MakeClient) -> None:
    with pytest.raises(ContextTooLong, match="system prompt"):
        ask(make_client(), [Message("system", "rule " * 400), Message("user", "hi")], window="drop_oldest_turns")


def test_the_strategys_name_is_checked(make_client: MakeClient, tmp_path: Path) -> None:
    client = make_client()
    with pytest.raises(InvalidRequest, match="window"):
        ask(client, LONG, window="forget")
    (tmp_path / "aios.toml").write_text('window = "forget"\n')
    with pytest.raises(ConfigError, match="window"):
        load(cwd=tmp_path)


def test_the_demo_model_goes_on_beyond_its_window(make_client: MakeClient) -> None:
    """The prompts stay below the limit, and between two cuts each takes the KV of the one before."""
    client = make_client(model="demo", window="drop_oldest_turns", kv_tokens=512)
    client.call(AgentSpawn("p", "reckoner"), program="p")
    tools = [ToolSpec("calculator", "", {"type": "object", "properties": {"expression": {"type": "string"}}})]
    talk: list[Message] = []
    cuts: list[int] = []
    for number in range(10, 34):
        talk.append(Message("user", f"What is {number} + 3?"))
        call = LlmChat(messages=talk, tools=tools, sampling=Sampling(max_tokens=16))
        answer = client.call(call, program="p")
        assert isinstance(answer, LlmResult)
        assert answer.usage.prompt_tokens + 16 <= 512
        cut = answer.window.dropped_messages if answer.window is not None else 0
        if cuts and cut == cuts[-1]:
            assert answer.usage.cached_tokens >= answer.usage.prompt_tokens - 64  # one turn, and a block begun
        cuts.append(cut)
        called = ToolCall(f"c{number}", "calculator", f'{{"expression": "{number} + 3"}}')
        talk.append(Message("assistant", "", [called]))
        talk.append(Message("tool", str(number + 3), tool_call_id=called.id, name="calculator"))
        talk.append(Message("assistant", f"{number} + 3 = {number + 3}."))
    assert cuts[0] == 0
    assert cuts == sorted(cuts)
    assert 2 <= len(set(cuts)) <= len(cuts) // 3
