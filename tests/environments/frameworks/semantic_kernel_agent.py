"""Semantic Kernel's chat agent, streamed."""

import asyncio

from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion
from semantic_kernel.functions import kernel_function


class Prices:
    @kernel_function
    def price(self, item: str) -> str:
        """Look up the price of an item."""
        return f"12.5 for {item}"


async def main() -> None:
    agent = ChatCompletionAgent(service=OpenAIChatCompletion("gpt-4o"), name="clerk", plugins=[Prices()])
    asked = 'What does kiwi_7 cost?\ncall Prices-price {"item": "kiwi_7"}'
    pieces = [str(piece.content) async for piece in agent.invoke_stream(messages=asked)]
    print("ANSWER", "".join(pieces))


asyncio.run(main())
