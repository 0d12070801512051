"""The plugin: what is hooked, and what becomes of it."""

from aios_adapters.adapter import Adapter
from aios_adapters.hookspecs import hookimpl
from aios_kernel.syscalls import LlmChat, Message, ToolCall, ToolSpec


@hookimpl
def aios_adapter():
    return Adapter("tinyagents", tested={}, hooks={"tinyagents": install})


def install(patcher):
    import tinyagents

    patcher.leaves(tinyagents.Model, {"ask": ask}, kind="model")
    patcher.method(tinyagents.Agent, "call", call)
    patcher.method(tinyagents.Agent, "run", run)


async def run(scope, original, agent, /, text):
    with scope.child(agent.name, "tinyagents").on():
        return await original(agent, text)


async def call(scope, original, agent, /, tool, arguments):
    return await scope.arun_tool(tool, arguments, lambda: original(agent, tool, arguments))


async def ask(scope, original, model, /, messages, tools):
    told = [Message(m["role"], m["content"] or "", tool_calls(m)) for m in messages]
    offered = [ToolSpec(name, tool.__doc__ or "") for name, tool in tools.items()]
    answer = await scope.achat(LlmChat(messages=told, tools=offered))
    return {"content": answer.text, "calls": [(c.name, c.arguments) for c in answer.tool_calls]}


def tool_calls(message):
    return [ToolCall(f"call-{n}", *each) for n, each in enumerate(message.get("calls", []))]
