"""Agno, streamed."""

from agno.agent import Agent
from agno.models.openai import OpenAIChat


def price(item: str) -> str:
    """Look up the price of an item."""
    return f"12.5 for {item}"


agent = Agent(model=OpenAIChat(id="gpt-4o"), tools=[price], telemetry=False)
pieces = agent.run('What does kiwi_7 cost?\ncall price {"item": "kiwi_7"}', stream=True)
print("ANSWER", "".join(piece.content or "" for piece in pieces if piece.event == "RunContent"))
