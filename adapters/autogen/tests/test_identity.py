"""Who asks: agents and teams under their own names, wherever AutoGen runs them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent, BaseChatAgent, SocietyOfMindAgent
from autogen_agentchat.base import Handoff, Response, TaskResult, Team
from autogen_agentchat.messages import (
    BaseChatMessage,
    HandoffMessage,
    ModelClientStreamingChunkEvent,
    StructuredMessage,
    TextMessage,
)
from autogen_agentchat.teams import RoundRobinGroupChat, SelectorGroupChat, Swarm
from autogen_core import (
    AgentId,
    CancellationToken,
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    message_handler,
)
from autogen_core.models import ChatCompletionClient, UserMessage
from autogen_core.tools import BaseTool, Workbench
from autogen_ext.models.openai import OpenAIChatCompletionClient
from pydantic import BaseModel

import aios_adapters as aios
from aios_adapters import host
from aios_adapters.testing import KernelHandle


def asked(kernel: KernelHandle) -> list[str]:
    """The agents that asked the model, in order."""
    return [span.agent for span in kernel.spans() if span.syscall == "llm.chat"]


def last(result: TaskResult) -> str:
    message = result.messages[-1]
    assert isinstance(message, BaseChatMessage)
    return message.to_text()


# --- what can be wrapped --------------------------------------------------------------------------------------------


async def test_a_built_agent(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    agent = aios.agent(AssistantAgent("helper", client))
    assert isinstance(agent, AssistantAgent)
    assert last(await agent.run(task="say x")) == "x"
    assert asked(fake_kernel) == ["helper"]
    assert fake_kernel.wait_for(lambda: fake_kernel.ps()[0].state == "finished")


async def test_a_stream_of_a_built_agent(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    agent = aios.agent(AssistantAgent("helper", client, model_client_stream=True), name="alice")
    messages = [message async for message in agent.run_stream(task="think 5")]
    chunks = [message for message in messages if isinstance(message, ModelClientStreamingChunkEvent)]
    assert "".join(chunk.content for chunk in chunks) == "w0 w1 w2 w3 w4"
    assert isinstance(messages[-1], TaskResult)
    assert aios.current() is None
    assert asked(fake_kernel) == ["alice/helper"]


async def test_a_class(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    @aios.agent(name="alice")
    class Helper:
        def __init__(self) -> None:
            self._agent = AssistantAgent("helper", client)

        async def help(self, task: str) -> str:
            return last(await self._agent.run(task=task))

        async def chat(self, task: str) -> AsyncGenerator[Any, None]:
            async for message in self._agent.run_stream(task=task):
                yield message

    helper = Helper()
    assert await helper.help("say x") == "x"
    assert [message async for message in helper.chat("say y")]
    assert asked(fake_kernel) == ["alice/helper"] * 2


def test_a_plain_function(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    @aios.agent
    def alice() -> str:
        return last(asyncio.run(AssistantAgent("helper", client).run(task="say x")))

    assert alice() == "x"
    assert asked(fake_kernel) == ["alice/helper"]


class Reply(BaseModel):
    text: str


async def test_structured_output(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    agent = aios.agent(AssistantAgent("helper", client, output_content_type=Reply), name="helper")
    message = (await agent.run(task='json {"text": "hi"}')).messages[-1]
    assert isinstance(message, StructuredMessage)
    assert message.content == Reply(text="hi")
    assert message.models_usage is not None
    assert message.models_usage.completion_tokens > 0


# --- teams ----------------------------------------------------------------------------------------------------------


def team_of(client: ChatCompletionClient, **kwargs: Any) -> RoundRobinGroupChat:
    members: list[Any] = [AssistantAgent("one", client), AssistantAgent("two", client, model_client_stream=True)]
    return RoundRobinGroupChat(members, max_turns=3, **kwargs)


async def test_each_agent_of_a_team(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    team = aios.agent(team_of(client), name="team")
    assert isinstance(team, Team)
    assert last(await team.run(task="say x")) == "echo: echo: x"
    _ = [message async for message in team.run_stream(task="say x")]
    assert asked(fake_kernel)[:3] == ["team/one", "team/two", "team/one"]
    parents = {row.agent: row.parent for row in fake_kernel.ps()}
    programs = {row.program: row.agent for row in fake_kernel.ps()}
    assert programs[parents["team/one"] or ""] == programs[parents["team/two"] or ""] == "team"


async def test_a_team_whose_name_was_chosen(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    inner = team_of(client, name="inner")
    outer = aios.agent(RoundRobinGroupChat([inner, AssistantAgent("last", client)], max_turns=2), name="outer")
    await outer.run(task="say x")
    assert asked(fake_kernel) == ["outer/inner/one", "outer/inner/two", "outer/inner/one", "outer/last"]


async def test_a_selector_asks_as_the_team(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    members: list[Any] = [AssistantAgent(name, client, description=name) for name in ("one", "two")]
    selecting = OpenAIChatCompletionClient(
        model="served-here",
        api_key="unused",
        model_info={
            "vision": False,
            "function_calling": True,
            "json_output": True,
            "family": "unknown",
            "structured_output": True,
        },
    )
    prompt = "{roles} {participants} {history}\nsay two"
    team = SelectorGroupChat(members, selecting, max_turns=1, selector_prompt=prompt)
    result = await aios.agent(team, name="team").run(task="say x")
    assert result.messages[-1].source == "two"
    assert asked(fake_kernel) == ["team", "team/two"]


async def test_a_swarm_hands_over(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    first = AssistantAgent("first", client, handoffs=[Handoff(target="second")])
    team = Swarm([first, AssistantAgent("second", client)], max_turns=2)
    result = await aios.agent(team, name="swarm").run(task="call transfer_to_second {}")
    assert any(isinstance(message, HandoffMessage) for message in result.messages)
    assert asked(fake_kernel) == ["swarm/first", "swarm/second"]
    tools = [(span.agent, span.detail) for span in fake_kernel.spans() if span.syscall == "tool.run"]
    assert tools == [("swarm/first", "transfer_to_second")]


async def test_a_society_of_mind(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    society = SocietyOfMindAgent("society", team=team_of(client), model_client=client)
    await aios.agent(society, name="alice").run(task="say x")
    names = ["one", "two", "one"]
    assert asked(fake_kernel) == [f"alice/society/{name}" for name in names] + ["alice/society"]


async def test_a_wrapped_agent_in_a_plain_team(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    member = aios.agent(AssistantAgent("wrapped", client), name="alice")
    plain = Scripted("plain")
    result = await RoundRobinGroupChat([member, plain], max_turns=2).run(task="say x")
    assert result.messages[-1].to_text() == "scripted"  # type: ignore[union-attr]
    assert asked(fake_kernel) == ["alice/wrapped"]


class Scripted(BaseChatAgent):
    """An agent written by a user, after the adapter was installed; it may ask a model."""

    def __init__(self, name: str, client: ChatCompletionClient | None = None) -> None:
        super().__init__(name, "scripted")
        self._client = client

    @property
    def produced_message_types(self) -> Sequence[type[BaseChatMessage]]:
        return (TextMessage,)

    async def on_messages(self, messages: Sequence[BaseChatMessage], cancellation_token: CancellationToken) -> Response:
        text = "scripted"
        if self._client is not None:
            text = str((await self._client.create([UserMessage(content="say asked", source="user")])).content)
        return Response(chat_message=TextMessage(content=text, source=self.name))

    async def on_reset(self, cancellation_token: CancellationToken) -> None: ...


async def test_an_agent_written_by_a_user(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    with aios.running("alice"):
        assert last(await Scripted("own", client).run(task="x")) == "asked"
    assert asked(fake_kernel) == ["alice/own"]


# --- concurrency ----------------------------------------------------------------------------------------------------


async def test_agents_under_gather(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    teams = [aios.agent(team_of(client), name=f"team{number}") for number in range(8)]
    results = await asyncio.gather(*(team.run(task=f"say {number}") for number, team in enumerate(teams)))
    assert [last(result) for result in results] == [f"echo: echo: {number}" for number in range(8)]
    expected = [f"team{number}/{name}" for number in range(8) for name in ("one", "one", "two")]
    assert sorted(asked(fake_kernel)) == expected


def test_agents_in_threads(fake_kernel: KernelHandle) -> None:
    def work(name: str) -> None:
        client = OpenAIChatCompletionClient(model="gpt-4o", api_key="unused")
        asyncio.run(aios.agent(team_of(client), name=name).run(task="say x"))

    threads = [threading.Thread(target=work, args=(f"team{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(asked(fake_kernel))) == sorted(f"team{n}/{name}" for n in range(4) for name in ("one", "two"))


async def test_a_runtime_started_before(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    runtime = SingleThreadedAgentRuntime()
    runtime.start()
    teams = [aios.agent(team_of(client, runtime=runtime), name=name) for name in ("left", "right")]
    await asyncio.gather(*(team.run(task="say x") for team in teams))
    await runtime.stop()
    assert sorted(set(asked(fake_kernel))) == ["left/one", "left/two", "right/one", "right/two"]


async def test_a_runtime_started_inside_another_agent(
    fake_kernel: KernelHandle, client: OpenAIChatCompletionClient, no_network: list[Any]
) -> None:
    runtime = SingleThreadedAgentRuntime()
    with aios.running("starter"):
        runtime.start()
    await aios.agent(team_of(client, runtime=runtime), name="later").run(task="say x")
    outside = AssistantAgent("outside", OpenAIChatCompletionClient(model="gpt-4o", api_key="unused", max_retries=0))
    with pytest.raises(RuntimeError, match="Connection error"):
        await RoundRobinGroupChat([outside], max_turns=1, runtime=runtime).run(task="say x")
    await runtime.stop()
    assert set(asked(fake_kernel)) == {"later/one", "later/two"}
    assert no_network


class Question(BaseModel):
    text: str


class Asking(RoutedAgent):
    def __init__(self, client: ChatCompletionClient) -> None:
        super().__init__("asks")
        self._client = client

    @message_handler
    async def on_question(self, message: Question, ctx: MessageContext) -> Question:
        result = await self._client.create(
            [UserMessage(content=message.text, source="user")], cancellation_token=ctx.cancellation_token
        )
        return Question(text=str(result.content))


async def test_an_agent_of_autogen_core(fake_kernel: KernelHandle, client: OpenAIChatCompletionClient) -> None:
    runtime = SingleThreadedAgentRuntime()
    await Asking.register(runtime, "asking", lambda: Asking(client))
    runtime.start()
    with aios.running("alice"):
        answer = await runtime.send_message(Question(text="say core"), AgentId("asking", "default"))
    await runtime.stop_when_idle()
    assert answer.text == "core"
    assert asked(fake_kernel) == ["alice"]


async def test_a_cancelled_team_stops_its_generation(
    fake_kernel: KernelHandle, client: OpenAIChatCompletionClient, until: Any
) -> None:
    token = CancellationToken()
    team = aios.agent(team_of(client), name="team")
    run = asyncio.ensure_future(team.run(task="ponder", cancellation_token=token))
    await until("running")
    token.cancel()
    with pytest.raises((asyncio.CancelledError, RuntimeError)):
        await run
    await until(lambda: bool(asked(fake_kernel)))
    spans = [span for span in fake_kernel.spans() if span.syscall == "llm.chat"]
    assert [(span.agent, span.outcome) for span in spans] == [("team/one", "cancelled")]


async def test_a_kernels_error_reaches_the_caller_of_a_team(
    fake_kernel: KernelHandle, client: OpenAIChatCompletionClient
) -> None:
    member = AssistantAgent("one", OpenAIChatCompletionClient(model="gpt-4o", api_key="unused", frequency_penalty=3.0))
    with pytest.raises(RuntimeError, match="frequency_penalty"):
        await aios.agent(RoundRobinGroupChat([member], max_turns=1), name="team").run(task="say x")


# --- on and off -----------------------------------------------------------------------------------------------------


async def test_everything_can_be_undone(fake_kernel: KernelHandle, no_network: list[Any]) -> None:
    client = OpenAIChatCompletionClient(model="gpt-4o", api_key="unused", max_retries=0)
    owners: list[tuple[Any, str]] = [
        (type(client).__mro__[1], "create"),
        (BaseTool, "run_json"),
        (AssistantAgent, "on_messages_stream"),
        (SingleThreadedAgentRuntime, "_process_publish"),
    ]
    assert all(hasattr(getattr(owner, name), "__wrapped__") for owner, name in owners)
    with aios.running("alice"):
        host().deactivate()
        try:
            assert not any(hasattr(getattr(owner, name), "__wrapped__") for owner, name in owners)
            assert "__init_subclass__" not in vars(Workbench)
            with pytest.raises(Exception, match="Connection error"):
                await client.create([UserMessage(content="say x", source="user")])
        finally:
            host().activate()
        assert (await client.create([UserMessage(content="say x", source="user")])).content == "x"
    assert no_network
