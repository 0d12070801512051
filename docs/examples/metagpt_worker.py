"""The MetaGPT step of `with_metagpt.py`, run by MetaGPT's own environment: an accountant with a calculator."""

from __future__ import annotations

import ast
import operator
from typing import Any

import aios_adapters as aios  # before MetaGPT: with its adapter no configuration file and no key is needed

from metagpt.actions import Action  # isort: skip
from metagpt.roles import Role  # isort: skip
from metagpt.schema import Message  # isort: skip

SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
CALCULATOR = {
    "name": "calculator",
    "description": "Work out an arithmetic expression with + - * /.",
    "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
}


def calculator(expression: str) -> str:
    """Work out an arithmetic expression with + - * /."""

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.BinOp(left, sign, right) if type(sign) in SIGNS:
                return SIGNS[type(sign)](value(left), value(right))
            case _:
                raise ValueError(f"cannot read {expression}")

    return f"{value(ast.parse(expression, mode='eval').body):g}"


class Calculate(Action):
    """Lets the model call the calculator, and works out what it asked for."""

    async def run(self, history: list[Message]) -> str:
        """Answer the newest message."""
        tools = [{"type": "function", "function": CALCULATOR}]
        call = await self.llm.aask_code(history[-1].content, tools=tools)
        return calculator(call["expression"]) if "expression" in call else call["code"]


class Accountant(Role):
    """A role as MetaGPT's documentation would write it."""

    name: str = "Carl"
    profile: str = "Accountant"
    goal: str = "calculate without mistakes"

    def __init__(self, **data: Any) -> None:
        super().__init__(**data)
        self.set_actions([Calculate])


async def total(price: str, item: str, count: int) -> str:
    """The step: what the step `price` said, and the run's inputs."""
    message = await Accountant().run(f"Agent Anna says: {price} What do {count} cost?")
    return f"{count} {item} cost {message.content}."


if __name__ == "__main__":
    aios.workflow.serve(total, "total")
