"""Google ADK with a model of OpenAI's."""

import asyncio

from google.adk.agents import LlmAgent
from google.adk.runners import InMemoryRunner
from google.genai import types


def price(item: str) -> dict[str, str]:
    """Look up the price of an item."""
    return {"price": f"12.5 for {item}"}


async def main() -> None:
    runner = InMemoryRunner(agent=LlmAgent(name="clerk", model="gpt-4o", tools=[price]), app_name="shop")
    session = await runner.session_service.create_session(app_name="shop", user_id="me")
    asked = types.Content(role="user", parts=[types.Part(text='What does kiwi_7 cost?\ncall price {"item": "kiwi_7"}')])
    async for event in runner.run_async(user_id="me", session_id=session.id, new_message=asked):
        if event.is_final_response() and event.content:
            print("ANSWER", "".join(part.text or "" for part in event.content.parts))


asyncio.run(main())
