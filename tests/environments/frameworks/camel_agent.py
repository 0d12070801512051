"""CAMEL: a chat agent with a toolkit's function."""

from camel.agents import ChatAgent
from camel.models import ModelFactory
from camel.toolkits import FunctionTool
from camel.types import ModelPlatformType


def price(item: str) -> str:
    """Look up the price of an item.

    Args:
        item (str): The item's name.

    Returns:
        str: The price.
    """
    return f"12.5 for {item}"


model = ModelFactory.create(ModelPlatformType.OPENAI, model_type="gpt-4o")
agent = ChatAgent("You tell prices.", model=model, tools=[FunctionTool(price)])
print("ANSWER", agent.step('What does kiwi_7 cost?\ncall price {"item": "kiwi_7"}\n').msgs[0].content)
