"""A framework: a model that talks to a server, tools that are functions, and an agent that loops."""

import json

from pydantic import validate_call


class Model:
    async def ask(self, messages: list[dict], tools: dict) -> dict:
        raise OSError("no server here")


class Agent:
    def __init__(self, name: str, model: Model, tools: dict):
        self.name, self.model, self.tools = name, model, tools

    async def call(self, tool: str, arguments: str) -> str:
        return str(validate_call(self.tools[tool])(**json.loads(arguments)))

    async def run(self, text: str) -> str:
        messages = [{"role": "user", "content": text}]
        while True:
            answer = await self.model.ask(messages, self.tools)
            messages.append({"role": "assistant", **answer})
            if not answer["calls"]:
                return answer["content"]
            for tool, arguments in answer["calls"]:
                try:
                    result = await self.call(tool, arguments)
                except Exception as error:
                    result = f"error: {error}"
                messages.append({"role": "tool", "content": result})
