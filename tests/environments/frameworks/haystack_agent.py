"""Haystack's Agent."""

from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import tool


@tool
def price(item: str) -> str:
    """Look up the price of an item."""
    return f"12.5 for {item}"


agent = Agent(chat_generator=OpenAIChatGenerator(model="gpt-4o"), tools=[price])
result = agent.run(messages=[ChatMessage.from_user('What does kiwi_7 cost?\ncall price {"item": "kiwi_7"}')])
print("ANSWER", result["last_message"].text)
