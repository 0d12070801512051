"""Agents that outgrow the window, through the frameworks: they go on, and what was left out is told."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel.errors import ConfigError

TALK = [(role, f"{role} {n} " + "word " * 10) for n in range(30) for role in ("user", "assistant")]


@pytest.fixture(autouse=True)
def small_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of 256 words at most; no key, no tracing."""
    monkeypatch.setenv("AIOS_KV_TOKENS", "256")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_openais_sdk(fake_kernel: KernelHandle, caplog: pytest.LogCaptureFixture) -> None:
    from openai import APIError, OpenAI

    def ask(**options: Any) -> Any:
        talk: Any = [{"role": role, "content": text} for role, text in TALK]
        return OpenAI().chat.completions.create(
            model="gpt-4o", messages=[*talk, {"role": "user", "content": "say hello"}], max_tokens=20, **options
        )

    cutting = aios.agent(name="cutting", window="drop_oldest_turns")(ask)
    refusing = aios.agent(name="refusing")(ask)
    with caplog.at_level(logging.WARNING, "aios_adapters"):
        answer = cutting()
    assert answer.choices[0].message.content == "hello"
    assert answer.usage.prompt_tokens <= 236
    left_out = answer.model_extra["aios_window"]
    assert left_out["strategy"] == "drop_oldest_turns"
    assert left_out["dropped_messages"] > 0
    assert "agent cutting" in caplog.text
    chunks = list(cutting(stream=True))
    assert [chunk.model_extra["aios_window"] for chunk in chunks if "aios_window" in chunk.model_extra] == [left_out]
    with pytest.raises(APIError, match="tokens"):
        refusing()


@pytest.mark.parametrize("strategy", ["drop_oldest_turns", "summarise"])
def test_a_langchain_agent_with_tools(fake_kernel: KernelHandle, strategy: Any) -> None:
    from langchain.agents import create_agent
    from langchain_core.messages import AIMessage
    from langchain_openai import ChatOpenAI

    @aios.agent(name="sums", window=strategy)
    def run() -> Any:
        graph = create_agent(ChatOpenAI(model="gpt-4o", max_completion_tokens=20), [add], system_prompt="You add.")
        asked: Any = {"messages": [*TALK, ("user", 'call add {"a": 1, "b": 2}')]}
        return graph.invoke(asked)["messages"]

    messages = run()
    assert messages[-1].content == "tool said: 3"
    assert len(messages) > len(TALK), "the framework's own history stays whole"
    for message in messages[-3:]:
        if isinstance(message, AIMessage):
            assert message.response_metadata["aios_window"]["strategy"] == strategy
    marks = [mark for span in fake_kernel.spans() for mark in span.marks if mark.kind == "cut"]
    assert len(marks) == 2
    (program,) = [row for row in fake_kernel.ps() if row.agent == "sums"]
    assert (program.llm_calls > 2) == (strategy == "summarise")


async def test_llamaindex(fake_kernel: KernelHandle) -> None:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai import OpenAI

    @aios.agent(name="talker", window="drop_oldest_turns")
    async def run() -> Any:
        talk = [ChatMessage(role=role, content=text) for role, text in TALK]
        llm = OpenAI(model="gpt-4o", max_tokens=20)
        return await llm.achat([*talk, ChatMessage(role="user", content="say hello")])

    answer = await run()
    assert answer.message.content == "hello"
    assert answer.raw.model_extra["aios_window"]["dropped_messages"] > 0


def test_a_wrong_name_is_refused(fake_kernel: KernelHandle) -> None:
    with pytest.raises(ConfigError, match="fix: choose one of refuse, drop_oldest_turns, summarise"):
        aios.agent(name="x", window="forget")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="forget"), aios.running("x", window="forget"):
        pass
