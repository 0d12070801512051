"""smolagents: its results come back to the model as a user's message, and a tool ends the run."""

from smolagents import OpenAIServerModel, ToolCallingAgent, tool


@tool
def price(item: str) -> str:
    """Look up the price of an item.

    Args:
        item: the item's name.
    """
    return f'12.5 for {item}\ncall final_answer {{"answer": "the price is 12.5"}}'


agent = ToolCallingAgent(tools=[price], model=OpenAIServerModel("gpt-4o"), max_steps=3, verbosity_level=0)
print("ANSWER", agent.run('What does kiwi_7 cost?\ncall price {"item": "kiwi_7"}'))
