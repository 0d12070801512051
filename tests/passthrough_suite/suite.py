"""A suite as a framework's users write it, with its own fakes; `test_passthrough.py` runs it with and without us."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_core.memory import ListMemory, MemoryContent
from autogen_ext.models.replay import ReplayChatCompletionClient
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.language_models.fake_chat_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import create_react_agent
from langgraph.store.memory import InMemoryStore
from llama_index.core.llms.mock import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool


@pytest.fixture
def chat() -> FakeListChatModel:
    return FakeListChatModel(responses=["one", "two"])


@pytest.fixture(scope="session")
def session_chat() -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter(AIMessage(f"{n}") for n in range(100)))


def test_invoke(chat: Any) -> None:
    assert chat.invoke("x").content == "one"


def test_stream(chat: Any) -> None:
    assert [chunk.content for chunk in chat.stream("x")] == ["o", "n", "e"]


async def test_ainvoke(chat: Any) -> None:
    assert (await chat.ainvoke("x")).content == "one"


async def test_astream(chat: Any) -> None:
    assert [chunk.content async for chunk in chat.astream("x")] == ["o", "n", "e"]


def test_session_fixture_first(session_chat: Any) -> None:
    assert session_chat.invoke("x").content == "0"


def test_session_fixture_second(session_chat: Any) -> None:
    assert session_chat.invoke("x").content == "1"


def test_completion() -> None:
    assert FakeListLLM(responses=["a"]).invoke("x") == "a"


def test_this_fails(chat: Any) -> None:
    assert chat.invoke("x").content == "three"


@pytest.mark.xfail(strict=True)
def test_this_is_expected_to_fail(chat: Any) -> None:
    assert chat.invoke("x").content == "three"


def test_model_error() -> None:
    class Broken(FakeListChatModel):
        def _call(self, *args: Any, **kwargs: Any) -> str:
            raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        Broken(responses=[""]).invoke("x")


def test_tool_error() -> None:
    @tool
    def fail() -> str:
        """Fail."""
        raise ToolException("no")

    with pytest.raises(ToolException, match=r"^no$"):
        fail.invoke({})


def test_tool_sees_its_own_thread() -> None:
    @tool
    def where() -> str:
        """Where it runs."""
        return threading.current_thread().name

    assert where.invoke({}) == threading.current_thread().name


def test_agent_with_memory() -> None:
    class Scripted(GenericFakeChatModel):
        def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
            return self

    @tool
    def double(n: int) -> int:
        """Double."""
        return 2 * n

    answers = [AIMessage("", tool_calls=[{"name": "double", "args": {"n": 4}, "id": "1"}]), AIMessage("8")]
    saver, store = InMemorySaver(), InMemoryStore()
    graph = create_react_agent(Scripted(messages=iter(answers)), [double], checkpointer=saver, store=store)
    config = {"configurable": {"thread_id": "t"}}
    assert graph.invoke({"messages": ["4?"]}, config)["messages"][-1].content == "8"
    assert len(graph.get_state(config).values["messages"]) == 4
    store.put(("a",), "k", {"v": 1})
    assert store.get(("a",), "k").value == {"v": 1}  # type: ignore[union-attr]


async def test_autogen() -> None:
    memory = ListMemory()
    await memory.add(MemoryContent(content="fact", mime_type="text/plain"))
    client = ReplayChatCompletionClient(["answer"])
    result = await AssistantAgent("a", client, memory=[memory]).run(task="x")
    assert result.messages[-1].content == "answer"  # type: ignore[union-attr]
    assert client.count_tokens([]) == 0
    assert len(memory.content) == 1


async def test_autogen_streams() -> None:
    client = ReplayChatCompletionClient(["answer me"])
    items = [item async for item in client.create_stream([])]
    assert items[:-1] == ["answer ", "me"]


async def test_llamaindex() -> None:
    llm = MockLLM(max_tokens=2)
    assert llm.complete("a b c").text == "text text"
    assert (await llm.acomplete("a b c")).text == "text text"
    assert [part.delta for part in llm.stream_complete("abc")]
    assert FunctionTool.from_defaults(lambda n: n + 1, name="inc", description="inc").call(n=1).raw_output == 2
    memory = ChatMemoryBuffer.from_defaults(llm=llm)
    assert memory.get_all() == []


def test_openai_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(openai.OpenAIError, match="api_key"):
        openai.OpenAI()


def test_openai_connection_error() -> None:
    client = openai.OpenAI(api_key="x", base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])


async def test_cancelled() -> None:
    started = asyncio.Event()

    class Slow(FakeListChatModel):
        async def _acall(self, *args: Any, **kwargs: Any) -> str:
            started.set()
            await asyncio.Event().wait()
            return ""

        async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
            return await self._acall()

    task = asyncio.ensure_future(Slow(responses=[""]).ainvoke("x"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
