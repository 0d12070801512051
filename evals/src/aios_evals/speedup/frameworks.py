"""The same agent in four frameworks. Nothing here knows of the kernel: with it, only a decorator is added outside."""

from __future__ import annotations

from typing import Any

from aios_evals.speedup.walk import Endpoint, Tools, Walk, argument_model
from aios_evals.workloads.trajectory import Trajectory

MODEL = "gpt-4o"
_MAX_STEPS = 60


def walks() -> dict[str, Walk]:
    """A walk for each framework."""
    return {"langchain": langchain, "autogen": autogen, "llamaindex": llamaindex, "openai": openai}


def _connection(endpoint: Endpoint | None) -> dict[str, Any]:
    return {} if endpoint is None else {"base_url": endpoint.base_url, "api_key": endpoint.api_key}


async def langchain(run: Trajectory, tools: Tools, endpoint: Endpoint | None) -> list[str]:
    """LangChain: `create_agent` over `ChatOpenAI`."""
    from langchain.agents import create_agent
    from langchain_core.tools import StructuredTool
    from langchain_openai import ChatOpenAI

    offered = [
        StructuredTool.from_function(
            coroutine=tools.function(name),
            name=name,
            description=spec["description"],
            args_schema=argument_model(name, spec["parameters"]),
        )
        for name, spec in tools.specs.items()
    ]
    model = ChatOpenAI(model=MODEL, max_retries=0, timeout=None, **_connection(endpoint))
    agent: Any = create_agent(model, offered, system_prompt=run.system or None)
    messages: list[Any] = []
    texts: list[str] = []
    for turn in run.turns:
        messages.append({"role": "user", "content": turn.user})
        state = await agent.ainvoke({"messages": messages}, {"recursion_limit": 2 * _MAX_STEPS})
        messages = state["messages"]
        texts.append(messages[-1].text)
    return texts


async def autogen(run: Trajectory, tools: Tools, endpoint: Endpoint | None) -> list[str]:
    """AutoGen: an `AssistantAgent` that keeps calling tools until it answers in text."""
    from autogen_agentchat.agents import AssistantAgent
    from autogen_core.tools import BaseTool
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    class Recorded(BaseTool[Any, Any]):
        async def run(self, args: Any, cancellation_token: Any) -> str:
            return await tools.run(self.name, args.model_dump(exclude_none=True))

    offered: list[Any] = [
        Recorded(argument_model(name, spec["parameters"]), str, name, spec["description"])
        for name, spec in tools.specs.items()
    ]
    client = OpenAIChatCompletionClient(model=MODEL, max_retries=0, **_connection(endpoint))
    agent = AssistantAgent(
        "assistant", client, tools=offered, system_message=run.system or None, max_tool_iterations=_MAX_STEPS
    )
    results = [await agent.run(task=turn.user) for turn in run.turns]
    await client.close()
    return [str(getattr(result.messages[-1], "content", "")) for result in results]


async def llamaindex(run: Trajectory, tools: Tools, endpoint: Endpoint | None) -> list[str]:
    """LlamaIndex: a `FunctionAgent` with its own memory."""
    from llama_index.core.agent.workflow import FunctionAgent
    from llama_index.core.tools import FunctionTool
    from llama_index.core.workflow import Context
    from llama_index.llms.openai import OpenAI

    offered: list[Any] = [
        FunctionTool.from_defaults(
            async_fn=tools.function(name),
            name=name,
            description=spec["description"],
            fn_schema=argument_model(name, spec["parameters"]),
        )
        for name, spec in tools.specs.items()
    ]
    connection: dict[str, Any] = (
        {} if endpoint is None else {"api_base": endpoint.base_url, "api_key": endpoint.api_key}
    )
    model = OpenAI(model=MODEL, max_retries=0, timeout=3600.0, **connection)
    agent = FunctionAgent(tools=offered, llm=model, system_prompt=run.system or None, streaming=False, timeout=None)
    context = Context(agent)
    texts: list[str] = []
    for turn in run.turns:
        # The form of the framework's own documentation, which its overloads call deprecated.
        answer = await agent.run(user_msg=turn.user, ctx=context)  # pyright: ignore[reportDeprecated]
        texts.append(str(answer.response.content or ""))
    return texts


async def openai(run: Trajectory, tools: Tools, endpoint: Endpoint | None) -> list[str]:
    """The plain OpenAI SDK and a loop."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(max_retries=0, timeout=None, **_connection(endpoint))
    offered: Any = [{"type": "function", "function": spec} for spec in tools.specs.values()]
    messages: list[Any] = [{"role": "system", "content": run.system}] if run.system else []
    texts: list[str] = []
    for turn in run.turns:
        messages.append({"role": "user", "content": turn.user})
        while True:
            reply = await client.chat.completions.create(model=MODEL, messages=messages, tools=offered)
            message: Any = reply.choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            if not message.tool_calls:
                break
            for call in message.tool_calls:
                content = await tools.run_json(call.function.name, call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
        texts.append(message.content or "")
    await client.close()
    return texts
