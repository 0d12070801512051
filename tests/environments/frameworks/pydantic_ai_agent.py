"""PydanticAI, which asks the Responses API."""

from pydantic_ai import Agent

agent = Agent("openai:gpt-4o")


@agent.tool_plain
def price(item: str) -> str:
    """Look up the price of an item."""
    return f"12.5 for {item}"


print("ANSWER", agent.run_sync('What does kiwi_7 cost?\ncall price {"item": "kiwi_7"}').output)
