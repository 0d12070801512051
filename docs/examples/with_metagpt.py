"""A MetaGPT role, in an environment of its own, takes part in a workflow with LangChain and LlamaIndex.

    make metagpt                                        # once: its environment
    aios run docs/examples/with_metagpt.py              # on the demo model
    aios run docs/examples/with_metagpt.py "cable #3" 7

MetaGPT cannot be installed beside the other frameworks. Its step is another process, `metagpt_worker.py`, which joins
the same kernel: same model, same mailboxes, same memory, one row in `aios ps` like any other step.
METAGPT_PYTHON names the interpreter of another environment than the one that `make metagpt` makes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import aios_adapters as aios

HERE = Path(__file__).resolve().parent
PYTHON = Path(os.environ.get("METAGPT_PYTHON", HERE.parents[1] / ".venv-metagpt" / "bin" / "python"))
PRICES = {"kiwi_7": "12.5", "zebra-42": "14.5", "bolt M4": "0.15", "paper A4": "4.6", "cable #3": "5.2"}


def lookup(item: str) -> str:
    """Look up the price of an item."""
    return PRICES.get(item, f"not found: {item}")


async def remember(note: str) -> str:
    """Remember a note."""
    await aios.memory.aadd(note)
    return "saved"


flow = aios.workflow.Workflow("order")


@flow.step()
async def price(item: str) -> str:
    """LangChain looks the price up."""
    from langchain.agents import create_agent
    from langchain_openai import ChatOpenAI

    agent = create_agent(ChatOpenAI(model="gpt-4o"), [lookup])
    state = await agent.ainvoke({"messages": [("user", f"What is the price of {item}?")]})
    return state["messages"][-1].text


total = flow.remote(
    "total",
    after=[price],
    inputs=["item", "count"],
    command=[str(PYTHON), "-W", "ignore", str(HERE / "metagpt_worker.py")],
    environment={"METAGPT_PROJECT_ROOT": str(Path(tempfile.gettempdir()) / "aios-metagpt")},  # its logs and workspace
)


@flow.step(after=[total])
async def note(total: str) -> str:
    """LlamaIndex remembers what the MetaGPT role said."""
    from llama_index.core.agent.workflow import FunctionAgent
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai import OpenAI

    agent = FunctionAgent(
        tools=[FunctionTool.from_defaults(async_fn=remember)], llm=OpenAI(model="gpt-4o", temperature=0)
    )
    return str(await agent.run(user_msg=f"Agent Carl says: {total} Remember it."))


def main(item: str, count: int) -> None:
    """Run the workflow once."""
    if not PYTHON.exists():
        sys.exit(f"error: there is no {PYTHON}\nfix: make metagpt, or METAGPT_PYTHON=/path/to/its/python")
    run = flow.run(item=item, count=count)
    print(f"LangChain   {run[price]}")
    print(f"MetaGPT     {run[total]}")
    print(f"LlamaIndex  {run[note]}")


if __name__ == "__main__":
    arguments = dict(enumerate(sys.argv[1:]))
    main(arguments.get(0, "kiwi_7"), int(arguments.get(1, 4)))
