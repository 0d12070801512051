"""A tree search: reach a number from others with + - * /, trying all ways at once and giving up those that lose.

    aios run docs/examples/tree_search.py                      # on the demo model
    aios run docs/examples/tree_search.py 64 3 5 8             # the target, then the numbers
    aios run --model Qwen/Qwen3-1.7B docs/examples/tree_search.py 24 4 7 8 8
    aios trace --html tree.html                                # (while a kernel runs: aios serve) what ran when

Every step is a branch: a program below its parent's, with the parent's conversation, whose KV it shares. In each the
model works a step out with a tool; the first branch that arrives ends all others. The demo model can calculate but not
choose, so that the search tries every step in order of promise; another model is asked which steps look best first.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import operator
import os
import re
import sys
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI

import aios_adapters as aios

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
STEP = re.compile(r"(\d+) *([-+*/]) *(\d+)")
CALCULATOR: Any = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Work out an arithmetic expression.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}
DEMO = os.environ.get("AIOS_MODEL", "demo") == "demo"


@dataclass(frozen=True)
class Node:
    """A place in the tree: the numbers that are left, how they came about, and what was said."""

    numbers: tuple[int, ...]
    steps: tuple[str, ...] = ()
    talk: tuple[Any, ...] = ()

    def moves(self, target: int) -> list[tuple[int, str, int]]:
        """Steps with a natural number as result, the nearest to the target first."""
        pairs = itertools.permutations(sorted(self.numbers, reverse=True), 2)
        found = {(a, sign, b) for a, b in pairs if a >= b for sign in SIGNS if allowed(a, sign, b)}
        return sorted(found, key=lambda move: (abs(SIGNS[move[1]](move[0], move[2]) - target), move))

    def after(self, move: tuple[int, str, int], result: int, said: list[Any]) -> Node:
        """The place that a step leads to."""
        left = [*self.numbers]
        left.remove(move[0])
        left.remove(move[2])
        step = f"{move[0]} {move[1]} {move[2]} = {result}"
        return Node((*left, result), (*self.steps, step), (*self.talk, *said))


def allowed(a: int, sign: str, b: int) -> bool:
    """Whether a step gives a natural number that is new."""
    if sign == "/":
        return b > 1 and a % b == 0
    return a > b if sign == "-" else sign == "+" or b > 1


def calculator(expression: str) -> str:
    """The tool: one step, worked out."""
    match = STEP.fullmatch(expression.strip())
    if match is None or (match[2] == "/" and int(match[3]) == 0):
        return f"cannot read {expression}"
    return f"{SIGNS[match[2]](int(match[1]), int(match[3])):g}"


@dataclass
class Searcher:
    """Searches for one target."""

    client: AsyncOpenAI
    target: int

    async def explore(self, node: Node) -> Node | None:
        """The first place below this one (or this one) that has the target; all others are given up."""
        if self.target in node.numbers:
            return node
        async with aios.branches() as tree:
            for move in await self.ranked(node):
                tree.fork(self.follow, node, move, name=f"{move[0]}{move[1]}{move[2]}".replace("/", ":"))
            winner = await tree.first()
            return winner.result() if winner is not None else None

    async def follow(self, node: Node, move: tuple[int, str, int]) -> Node | None:
        """A branch: work a step out, then go on from there."""
        question: Any = {"role": "user", "content": f"What is {move[0]} {move[1]} {move[2]}?"}
        said = await self.answer([*node.talk, question])
        number = re.search(r"-?\d+(?:\.\d+)?$", said[-1]["content"].strip().rstrip("."))
        expected = SIGNS[move[1]](move[0], move[2])
        if number is None or float(number[0]) != expected:
            return None  # the model got it wrong: this way is closed
        return await self.explore(node.after(move, int(expected), [question, *said]))

    async def answer(self, talk: list[Any]) -> list[Any]:
        """What the model says to a conversation, tool calls and their results included."""
        said: list[Any] = []
        for _ in range(3):
            reply = await self.client.chat.completions.create(
                model="gpt-4o", messages=[*talk, *said], tools=[CALCULATOR], temperature=0, max_tokens=200
            )
            message = reply.choices[0].message
            said.append(message.model_dump(include={"role", "content", "tool_calls"}, exclude_none=True))
            if not message.tool_calls:
                break
            for call in message.tool_calls:
                said.append({"role": "tool", "tool_call_id": call.id, "content": await run_tool(call)})
        return [*said[:-1], {"content": "", **said[-1]}]

    async def ranked(self, node: Node) -> list[tuple[int, str, int]]:
        """The steps to try: those that the model thinks best before the others."""
        moves = node.moves(self.target)
        if DEMO or len(moves) < 2:
            return moves
        listing = ", ".join(f"{a} {sign} {b}" for a, sign, b in moves)
        question = (
            f"Reach {self.target} from {node.numbers} with + - * /. Which three of these steps come first? {listing}"
        )
        reply = await self.client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=100
        )
        liked = [(int(a), sign, int(b)) for a, sign, b in STEP.findall(reply.choices[0].message.content or "")]
        return sorted(moves, key=lambda move: liked.index(move) if move in liked else len(liked))


async def run_tool(call: Any) -> str:
    """Run the calculator under a grant of the kernel."""
    scope = aios.current()
    assert scope is not None

    async def work() -> str:
        return calculator(str(json.loads(call.function.arguments).get("expression", "")))

    return await scope.arun_tool("calculator", call.function.arguments, work, call_id=call.id)


@aios.agent(name="solver", window="drop_oldest_turns")
async def solve(target: int, numbers: list[int]) -> Node | None:
    """The agent."""
    async with AsyncOpenAI() as client:
        return await Searcher(client, target).explore(Node(tuple(numbers)))


if __name__ == "__main__":
    goal, *given = [int(text) for text in sys.argv[1:]] or [64, 3, 5, 8]
    found = asyncio.run(solve(goal, given))
    print("\n".join(found.steps) if found is not None else f"{goal} cannot be reached")
