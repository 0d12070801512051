"""Model clients inside a scope are served by the kernel, in AutoGen's own types."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_core import EVENT_LOGGER_NAME, CancellationToken, FunctionCall, Image
from autogen_core.logging import LLMCallEvent, LLMStreamEndEvent, LLMStreamStartEvent
from autogen_core.model_context import TokenLimitedChatCompletionContext
from autogen_core.models import (
    AssistantMessage,
    ChatCompletionClient,
    CreateResult,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    LLMMessage,
    ModelInfo,
    RequestUsage,
    SystemMessage,
    UserMessage,
)
from autogen_core.tools import FunctionTool
from autogen_ext.models.cache import ChatCompletionCache
from autogen_ext.models.openai import OpenAIChatCompletionClient
from autogen_ext.models.replay import ReplayChatCompletionClient
from PIL import Image as PILImage
from pydantic import BaseModel

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel import errors

LONG = "ponder"
INFO = ModelInfo(vision=False, function_calling=True, json_output=True, family="unknown", structured_output=True)


def user(text: str) -> list[LLMMessage]:
    return [UserMessage(content=text, source="user")]


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def subtract(a: int, b: int) -> int:
    """Subtract two numbers."""
    return a - b


ADD = FunctionTool(add, description="Add two numbers.")
SUBTRACT = FunctionTool(subtract, description="Subtract two numbers.")


class City(BaseModel):
    name: str
    people: int


async def test_create(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    @aios.agent(name="alice")
    async def run() -> CreateResult:
        return await client.create([SystemMessage(content="be brief"), *user("say hello there")])

    result = await run()
    assert (result.content, result.finish_reason, result.cached, result.thought) == ("hello there", "stop", False, None)
    assert result.usage.prompt_tokens > 0
    assert result.usage.completion_tokens > 0
    assert client.actual_usage() == client.total_usage() == result.usage
    (row,) = fake_kernel.ps()
    assert (row.agent, row.llm_calls, row.prompt_tokens) == ("alice", 1, result.usage.prompt_tokens)
    assert [span.detail for span in fake_kernel.spans() if span.syscall == "llm.chat"] == ["gpt-4o"]


async def test_usage_adds_up(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    with aios.running("alice"):
        first = await client.create(user("say one"))
        second = await client.create(user("say one two"))
    assert client.total_usage() == RequestUsage(
        prompt_tokens=first.usage.prompt_tokens + second.usage.prompt_tokens,
        completion_tokens=first.usage.completion_tokens + second.usage.completion_tokens,
    )


async def test_stream(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    with aios.running("alice"):
        items = [item async for item in client.create_stream(user("think 20"))]
    *texts, result = items
    assert isinstance(result, CreateResult)
    assert len(texts) > 1
    assert all(isinstance(text, str) and text for text in texts)
    assert "".join(str(text) for text in texts) == result.content == " ".join(f"w{n}" for n in range(20))
    assert result.usage.completion_tokens > 0
    assert client.total_usage() == result.usage


async def test_several_tool_calls(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    task = user('call add {"a": 1, "b": 2}\ncall subtract {"a": 5, "b": 3}')
    with aios.running("alice"):
        result = await client.create(task, tools=[ADD, SUBTRACT.schema])
        *texts, streamed = [item async for item in client.create_stream(task, tools=[ADD, SUBTRACT.schema])]
    assert result.finish_reason == "function_calls"
    assert isinstance(result.content, list)
    assert [(call.name, call.arguments) for call in result.content] == [
        ("add", '{"a": 1, "b": 2}'),
        ("subtract", '{"a": 5, "b": 3}'),
    ]
    assert len({call.id for call in result.content}) == 2
    assert texts == []
    assert isinstance(streamed, CreateResult)
    assert [call.name for call in streamed.content if isinstance(call, FunctionCall)] == ["add", "subtract"]


async def test_tool_results_go_back(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    messages = [
        *user("add"),
        AssistantMessage(content=[FunctionCall(id="1", name="add", arguments="{}")], source="a", thought="hm"),
        FunctionExecutionResultMessage(
            content=[
                FunctionExecutionResult(content="3", name="add", call_id="1"),
                FunctionExecutionResult(content="4", name="add", call_id="2"),
            ]
        ),
    ]
    with aios.running("alice"):
        assert (await client.create(messages, tools=[ADD])).content == "tool said: 3 | 4"


async def test_tool_choice_none(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    with aios.running("alice"):
        result = await client.create(user("call add {}\nsay no"), tools=[ADD], tool_choice="none")
    assert result.content == "no"


async def test_a_chosen_tool_must_be_offered(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    with aios.running("alice"), pytest.raises(errors.InvalidRequest, match="not offered"):
        await client.create(user("x"), tools=[ADD], tool_choice=SUBTRACT)


async def test_structured_output(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    with aios.running("alice"):
        instance = await client.create(user("any"), json_output=City)
        anything = await client.create(user("any"), json_output=True)
        given = await client.create(user("any"), extra_create_args={"response_format": {"type": "json_object"}})
        plain = await client.create(user("any"), json_output=False)
    assert isinstance(instance.content, str)
    assert City.model_validate_json(instance.content) == City(name="text", people=1)
    assert anything.content == given.content == "{}"
    assert plain.content == "echo: any"


async def test_arguments_of_the_call_win_over_the_clients(fake_kernel: KernelHandle) -> None:
    client = OpenAIChatCompletionClient(model="gpt-4o", api_key="unused", max_tokens=3, temperature=0.0, seed=7)
    with aios.running("alice"):
        short = await client.create(user("think 50"))
        longer = await client.create(user("think 50"), extra_create_args={"max_tokens": 5})
        stopped = await client.create(user("think 50"), extra_create_args={"stop": ["w2"], "max_tokens": 50})
    assert short.finish_reason == longer.finish_reason == "length"
    assert (short.usage.completion_tokens, longer.usage.completion_tokens) == (3, 5)
    assert stopped.finish_reason == "stop"
    assert str(stopped.content).strip() == "w0 w1"


async def test_logprobs(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    with aios.running("alice"):
        without = await client.create(user("say a b"))
        result = await client.create(user("say a b"), extra_create_args={"logprobs": True, "top_logprobs": 1})
    assert without.logprobs is None
    assert result.logprobs is not None
    assert "".join(token.token for token in result.logprobs) == "a b"
    assert all(token.top_logprobs for token in result.logprobs)


async def test_what_is_not_served_is_refused_by_name(
    fake_kernel: KernelHandle, client: OpenAIChatCompletionClient
) -> None:
    picture = UserMessage(content=["look", Image(PILImage.new("RGB", (2, 2)))], source="user")
    with aios.running("alice"):
        with pytest.raises(errors.Unsupported, match="n = 2"):
            await client.create(user("x"), extra_create_args={"n": 2})
        with pytest.raises(errors.InvalidRequest, match="frequency_penalty"):
            await client.create(user("x"), extra_create_args={"frequency_penalty": 3})
        with pytest.raises(errors.Unsupported, match="image_url"):
            await client.create([picture])
        assert (await client.create(user("say x"), extra_create_args={"frequency_penalty": 0, "user": "u"})).content


async def test_a_deadline_of_the_client(fake_kernel: KernelHandle) -> None:
    client = OpenAIChatCompletionClient(model="gpt-4o", api_key="unused", timeout=0.05)
    with aios.running("alice"), pytest.raises(errors.DeadlineExceeded):
        await client.create(user(LONG))


async def test_an_unreadable_request_reaches_the_agent(
    fake_kernel: KernelHandle, client: OpenAIChatCompletionClient
) -> None:
    agent = AssistantAgent("helper", client)
    with aios.running("alice"), pytest.raises(errors.InvalidRequest) as caught:
        await client.create([])
    assert "messages" in str(caught.value)
    with aios.running("alice"):
        assert (await agent.run(task="say fine")).messages[-1].to_text() == "fine"  # type: ignore[union-attr]


# --- cancelling -----------------------------------------------------------------------------------------------------


def cancelled(kernel: KernelHandle) -> bool:
    return any(s.syscall == "llm.chat" and s.outcome == "cancelled" for s in kernel.spans())


async def test_a_token_stops_the_generation(
    fake_kernel: KernelHandle, client: OpenAIChatCompletionClient, until: Any
) -> None:
    token = CancellationToken()
    with aios.running("alice"):
        call = asyncio.ensure_future(client.create(user(LONG), cancellation_token=token))
        await until("running")
        token.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: cancelled(fake_kernel))


async def test_a_token_stops_a_stream(
    fake_kernel: KernelHandle, client: OpenAIChatCompletionClient, until: Any
) -> None:
    token = CancellationToken()
    with aios.running("alice"):
        stream = client.create_stream(user(LONG), cancellation_token=token)
        assert isinstance(await anext(stream), str)
        token.cancel()
        with pytest.raises(asyncio.CancelledError):
            await anext(stream)
        await until(lambda: cancelled(fake_kernel))


async def test_a_token_used_before_the_call(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    token = CancellationToken()
    token.cancel()
    with aios.running("alice"):
        with pytest.raises(asyncio.CancelledError):
            await client.create(user("say x"), cancellation_token=token)
        with pytest.raises(asyncio.CancelledError):
            await anext(client.create_stream(user("say x"), cancellation_token=token))
    assert [span for span in fake_kernel.spans() if span.syscall == "llm.chat" and span.outcome == "ok"] == []


async def test_a_cancelled_task_stops_the_generation(
    fake_kernel: KernelHandle, client: OpenAIChatCompletionClient, until: Any
) -> None:
    with aios.running("alice"):
        call = asyncio.ensure_future(client.create(user(LONG), cancellation_token=CancellationToken()))
        await until("running")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: cancelled(fake_kernel))


async def test_a_closed_stream_stops_the_generation(
    fake_kernel: KernelHandle, client: OpenAIChatCompletionClient, until: Any
) -> None:
    with aios.running("alice"):
        stream = client.create_stream(user(LONG), cancellation_token=CancellationToken())
        await anext(stream)
        await stream.aclose()
        await until(lambda: cancelled(fake_kernel))


# --- other clients --------------------------------------------------------------------------------------------------


class Fake(ChatCompletionClient):
    """A client that was written by a user, after the adapter was installed."""

    component_type = "model"
    component_config_schema = BaseModel

    def __init__(self) -> None:
        self.calls = 0
        self._total_usage = RequestUsage(0, 0)

    async def create(self, messages: Sequence[LLMMessage], **kwargs: Any) -> CreateResult:
        self.calls += 1
        return CreateResult(finish_reason="stop", content="original", usage=RequestUsage(1, 1), cached=False)

    async def create_stream(self, messages: Sequence[LLMMessage], **kwargs: Any) -> AsyncGenerator[Any, None]:
        yield "orig"
        yield await self.create(messages)

    async def close(self) -> None: ...

    def actual_usage(self) -> RequestUsage:
        return self._total_usage

    def total_usage(self) -> RequestUsage:
        return self._total_usage

    def count_tokens(self, messages: Sequence[LLMMessage], **kwargs: Any) -> int:
        return 42

    def remaining_tokens(self, messages: Sequence[LLMMessage], **kwargs: Any) -> int:
        return 1000 - self.count_tokens(messages)

    @property
    def capabilities(self) -> Any:
        return INFO

    @property
    def model_info(self) -> ModelInfo:
        return INFO


class Shouting(Fake):
    """Changes the messages and leaves the rest to its base."""

    async def create(self, messages: Sequence[LLMMessage], **kwargs: Any) -> CreateResult:
        return await super().create([UserMessage(content="say LOUD", source="user")], **kwargs)


async def test_a_late_client_and_outside_a_scope(fake_kernel: KernelHandle) -> None:
    client = Fake()
    assert (await client.create(user("say x"))).content == "original"
    assert await anext(client.create_stream(user("say x"))) == "orig"
    assert client.count_tokens(user("x")) == 42
    calls = client.calls
    with aios.running("alice"):
        result = await client.create(user("say x"))
        streamed = [item async for item in client.create_stream(user("say x"))]
    assert result.content == "x"
    assert streamed[0] == "x"
    assert client.calls == calls
    assert client.total_usage().prompt_tokens == 2 * result.usage.prompt_tokens


async def test_outside_a_scope_the_network_is_tried(no_network: list[Any]) -> None:
    client = OpenAIChatCompletionClient(model="gpt-4o", api_key="unused", max_retries=0)
    with pytest.raises(Exception, match="Connection error"):
        await client.create(user("say x"))
    assert no_network == [b"api.openai.com"]


async def test_the_replay_client_is_a_client_like_others(fake_kernel: KernelHandle) -> None:
    client = ReplayChatCompletionClient(["recorded"])
    with aios.running("alice"):
        assert (await client.create(user("say live"))).content == "live"
    assert client.actual_usage() == client.total_usage()
    assert (await client.create(user("say live"))).content == "recorded"


async def test_a_cache_still_caches(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    cache = ChatCompletionCache(client)
    with aios.running("alice"):
        first, second = [await cache.create(user("say once")) for _ in range(2)]
        streamed = [item async for item in cache.create_stream(user("say twice"))]
    assert first.content == second.content == "once"
    assert second.cached
    assert streamed[0] == "twice"
    assert fake_kernel.ps()[0].llm_calls == 2


async def test_a_subclass_that_calls_its_base_keeps_its_part(fake_kernel: KernelHandle) -> None:
    client = Shouting()
    with aios.running("alice"):
        assert (await client.create(user("say quiet"))).content == "LOUD"
    assert client.calls == 0
    assert fake_kernel.ps()[0].llm_calls == 1


# --- tokens and events ----------------------------------------------------------------------------------------------


async def test_tokens_are_counted_without_a_network(
    fake_kernel: KernelHandle, client: OpenAIChatCompletionClient, no_network: list[Any]
) -> None:
    words = user(" ".join(["word"] * 400))
    with aios.running("alice"):
        assert 0 < client.count_tokens(words) < 2000
        real = (await client.create(words)).usage.prompt_tokens
        assert client.count_tokens(words) == real
        assert client.count_tokens(words, tools=[ADD]) > real
        assert client.remaining_tokens(words) == 128000 - real
    assert no_network == []


async def test_a_token_limited_context(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    context = TokenLimitedChatCompletionContext(client, token_limit=200)
    agent = AssistantAgent("helper", client, model_context=context)
    with aios.running("alice"):
        for _ in range(10):
            result = await agent.run(task="say " + "word " * 30)
    assert result.messages[-1].to_text().startswith("word")  # type: ignore[union-attr]
    with aios.running("alice"):
        assert len(await context.get_messages()) < 20


async def test_the_events_that_programs_count_by(
    fake_kernel: KernelHandle, client: OpenAIChatCompletionClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger=EVENT_LOGGER_NAME), aios.running("alice"):
        result = await client.create(user("say x"), tools=[ADD])
        _ = [item async for item in client.create_stream(user("say x"))]
    call, start, end = [record.msg for record in caplog.records if record.name == EVENT_LOGGER_NAME]
    assert isinstance(call, LLMCallEvent)
    assert call.prompt_tokens == result.usage.prompt_tokens
    assert call.kwargs["response"]["model"] == "fake"
    assert '"say x"' in str(call)
    assert isinstance(start, LLMStreamStartEvent)
    assert isinstance(end, LLMStreamEndEvent)
    assert str(start)
    assert end.completion_tokens > 0
