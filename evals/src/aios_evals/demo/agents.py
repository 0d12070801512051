"""One small agent in each of four frameworks, as their own documentation would write it. Nothing here knows the kernel.

Each takes questions one after the other in one conversation and gives the answers. `endpoint` is where the framework is
pointed without the kernel; under the decorator it is None and no key is needed.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from aios_evals.speedup.walk import Endpoint

MODEL = "gpt-4o"
Toolbox: TypeAlias = Sequence[Callable[[str], Awaitable[str]]]
DemoAgent: TypeAlias = Callable[[Sequence[str], Toolbox, Endpoint | None], Awaitable[list[str]]]


def frameworks() -> dict[str, DemoAgent]:
    """The agents by framework."""
    return {"langchain": langchain, "autogen": autogen, "llamaindex": llamaindex, "openai": openai}


async def langchain(questions: Sequence[str], tools: Toolbox, endpoint: Endpoint | None) -> list[str]:
    """LangChain: `create_agent`."""
    from langchain.agents import create_agent
    from langchain_core.tools import StructuredTool
    from langchain_openai import ChatOpenAI

    where: dict[str, Any] = {} if endpoint is None else {"base_url": endpoint.base_url, "api_key": endpoint.api_key}
    offered = [StructuredTool.from_function(coroutine=tool) for tool in tools]
    agent: Any = create_agent(ChatOpenAI(model=MODEL, **where), offered)
    messages: list[Any] = []
    answers: list[str] = []
    for question in questions:
        state = await agent.ainvoke({"messages": [*messages, {"role": "user", "content": question}]})
        messages = state["messages"]
        answers.append(messages[-1].text)
    return answers


async def autogen(questions: Sequence[str], tools: Toolbox, endpoint: Endpoint | None) -> list[str]:
    """AutoGen: an `AssistantAgent`."""
    from autogen_agentchat.agents import AssistantAgent
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    where: dict[str, Any] = {} if endpoint is None else {"base_url": endpoint.base_url, "api_key": endpoint.api_key}
    client = OpenAIChatCompletionClient(model=MODEL, **where)
    agent = AssistantAgent("assistant", client, tools=list(tools), max_tool_iterations=8)
    answers = [str(getattr((await agent.run(task=q)).messages[-1], "content", "")) for q in questions]
    await client.close()
    return answers


async def llamaindex(questions: Sequence[str], tools: Toolbox, endpoint: Endpoint | None) -> list[str]:
    """LlamaIndex: a `FunctionAgent`."""
    from llama_index.core.agent.workflow import FunctionAgent
    from llama_index.core.tools import FunctionTool
    from llama_index.core.workflow import Context
    from llama_index.llms.openai import OpenAI

    where: dict[str, Any] = {} if endpoint is None else {"api_base": endpoint.base_url, "api_key": endpoint.api_key}
    offered: list[Any] = [FunctionTool.from_defaults(async_fn=tool) for tool in tools]
    agent = FunctionAgent(tools=offered, llm=OpenAI(model=MODEL, **where), streaming=endpoint is None)
    context = Context(agent)
    answers: list[str] = []
    for question in questions:
        # The form of the framework's own documentation, which its overloads call deprecated.
        answer = await agent.run(user_msg=question, ctx=context)  # pyright: ignore[reportDeprecated]
        answers.append(str(answer.response.content or ""))
    return answers


async def openai(questions: Sequence[str], tools: Toolbox, endpoint: Endpoint | None) -> list[str]:
    """The plain OpenAI SDK and a loop."""
    from openai import AsyncOpenAI

    where: dict[str, Any] = {} if endpoint is None else {"base_url": endpoint.base_url, "api_key": endpoint.api_key}
    client = AsyncOpenAI(**where)
    by_name = {tool.__name__: tool for tool in tools}
    messages: list[Any] = []
    answers: list[str] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        while True:
            offered: Any = [_schema(tool) for tool in tools]
            reply = await client.chat.completions.create(model=MODEL, messages=messages, tools=offered)
            message: Any = reply.choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            if not message.tool_calls:
                break
            for call in message.tool_calls:
                (argument,) = json.loads(call.function.arguments).values()
                content = await by_name[call.function.name](argument)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
        answers.append(message.content or "")
    await client.close()
    return answers


def _schema(tool: Callable[..., Any]) -> dict[str, Any]:
    (argument, *_) = tool.__annotations__
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {
        "type": "function",
        "function": {"name": tool.__name__, "description": tool.__doc__, "parameters": parameters},
    }
