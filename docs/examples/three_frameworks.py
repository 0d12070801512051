"""Agents of three frameworks hand work to each other through one kernel, which runs their one model.

    aios run docs/examples/three_frameworks.py                 # on the demo model
    aios run docs/examples/three_frameworks.py "cable #3" 7    # an item of the price list, and how many
    aios run --model Qwen/Qwen3-1.7B docs/examples/three_frameworks.py

LangChain looks a price up, AutoGen calculates, LlamaIndex remembers the result; another LangChain agent, which is no
part of the workflow, is sent a message, waits, and recalls what LlamaIndex remembered. Plain `python` runs it as well.
"""

from __future__ import annotations

import ast
import asyncio
import operator
import re
import sys

import aios_adapters as aios

PRICES = {"kiwi_7": "12.5", "zebra-42": "14.5", "bolt M4": "0.15", "paper A4": "4.6", "cable #3": "5.2"}
SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


# The agents' tools: plain functions.


def lookup(item: str) -> str:
    """Look up the price of an item."""
    return PRICES.get(item, f"not found: {item}")


def calculator(expression: str) -> str:
    """Work out an arithmetic expression with + - * /."""

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.BinOp(left, sign, right) if type(sign) in SIGNS:
                return SIGNS[type(sign)](value(left), value(right))
            case _:
                raise ValueError(f"cannot read {expression}")

    return f"{value(ast.parse(expression, mode='eval').body):g}"


async def remember(note: str) -> str:
    """Remember a note."""
    await aios.memory.aadd(note, id=note.partition(" is ")[0])  # a later note on the same thing takes its place
    return "saved"


async def recall(query: str) -> str:
    """Recall notes about something."""
    return "\n".join(note.text for note in await aios.memory.asearch(query, k=1)) or "no notes found"


# The workflow: each step is an agent; a parameter takes the output of the step of its name, or an input of the run.

flow = aios.workflow.Workflow("purchase")


@flow.step()
async def price(item: str) -> str:
    """LangChain looks the price up."""
    from langchain.agents import create_agent
    from langchain_openai import ChatOpenAI

    agent = create_agent(ChatOpenAI(model="gpt-4o"), [lookup])
    state = await agent.ainvoke({"messages": [("user", f"What is the price of {item}?")]})
    return state["messages"][-1].text


@flow.step(after=[price])
async def total(price: str, count: int) -> str:
    """AutoGen calculates, from what LangChain said."""
    from autogen_agentchat.agents import AssistantAgent
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    client = OpenAIChatCompletionClient(model="gpt-4o")
    agent = AssistantAgent("accountant", client, tools=[calculator], max_tool_iterations=4)
    result = await agent.run(task=f"Agent Anna says: {price} What do {count} cost?")
    await client.close()
    return result.messages[-1].to_text()


@flow.step(after=[total])
async def note(total: str) -> str:
    """LlamaIndex remembers the cost for the whole group, and tells the auditor that it is about to."""
    from llama_index.core.agent.workflow import FunctionAgent
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai import OpenAI

    scope = aios.current()
    assert scope is not None
    await aios.asend("auditor", scope.program, topic="purchase")
    agent = FunctionAgent(
        tools=[FunctionTool.from_defaults(async_fn=remember)], llm=OpenAI(model="gpt-4o", temperature=0)
    )
    numbers = re.findall(r"\d+(?:\.\d+)?", total) or [total]
    return str(await agent.run(user_msg=f"Agent Bob says: the cost of Anna's order is {numbers[-1]}. Remember it."))


@aios.agent(name="auditor")
async def audit() -> str:
    """An agent beside the workflow: waits for LlamaIndex's program to end, then recalls what it remembered."""
    from langchain.agents import create_agent
    from langchain_openai import ChatOpenAI

    mail = await aios.areceive(topic="purchase")
    await aios.await_end(mail.body)
    agent = create_agent(ChatOpenAI(model="gpt-4o"), [recall])
    state = await agent.ainvoke({"messages": [("user", "What is the cost of Anna's order?")]})
    return state["messages"][-1].text


async def main(item: str, count: int) -> None:
    """Run the workflow and the auditor side by side."""
    run, recalled = await asyncio.gather(flow.arun(item=item, count=count), audit())
    print(f"LangChain   {run[price]}")
    print(f"AutoGen     {run[total]}")
    print(f"LlamaIndex  {run[note]}")
    print(f"LangChain   {recalled}")


if __name__ == "__main__":
    arguments = dict(enumerate(sys.argv[1:]))
    asyncio.run(main(arguments.get(0, "kiwi_7"), int(arguments.get(1, 4))))
