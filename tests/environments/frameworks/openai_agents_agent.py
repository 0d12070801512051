"""OpenAI Agents SDK, which asks the Responses API and streams."""

from agents import Agent, Runner, function_tool, set_tracing_disabled

set_tracing_disabled(True)


@function_tool
def price(item: str) -> str:
    """Look up the price of an item."""
    return f"12.5 for {item}"


agent = Agent(name="clerk", model="gpt-4o", tools=[price])
print("ANSWER", Runner.run_sync(agent, 'What does kiwi_7 cost?\ncall price {"item": "kiwi_7"}').final_output)
