"""CrewAI: a crew of one."""

from crewai import Agent, Crew, Task
from crewai.tools import tool


@tool("price")
def price(item: str) -> str:
    """Look up the price of an item."""
    return f"12.5 for {item}"


clerk = Agent(role="clerk", goal="tell prices", backstory="works in a shop", llm="gpt-4o", tools=[price])
task = Task(
    description='What does kiwi_7 cost?\ncall price {"item": "kiwi_7"}\n', expected_output="a price", agent=clerk
)
print("ANSWER", Crew(agents=[clerk], tasks=[task]).kickoff().raw)
