"""What a framework's agent needs to walk a trajectory: where its model is, and tools that do what was recorded."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from aios_evals.workloads.python_tool import run_python
from aios_evals.workloads.trajectory import RecordedCall, Trajectory


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a framework is pointed without the kernel; with it, None stands in its place."""

    base_url: str
    api_key: str


class Tools:
    """The tools of one walk. Each call of a tool takes the next recorded result of that tool; `ran` counts them."""

    def __init__(self, trajectory: Trajectory, delay_s: float) -> None:
        self.trajectory = trajectory
        self.delay_s = delay_s
        self.ran = 0
        self._recorded: dict[str, list[RecordedCall]] = defaultdict(list)
        for step in trajectory.steps:
            for call in step.calls:
                self._recorded[call.name].append(call)

    @property
    def specs(self) -> Mapping[str, dict[str, Any]]:
        """Function schemas by name."""
        return self.trajectory.tools

    @property
    def recorded(self) -> int:
        """How many calls the trajectory has."""
        return sum(len(step.calls) for step in self.trajectory.steps)

    def function(self, name: str) -> Callable[..., Awaitable[str]]:
        """The tool as an async function of keyword arguments."""

        async def tool(**arguments: Any) -> str:
            return await self.run(name, arguments)

        tool.__name__ = name
        tool.__doc__ = self.specs[name]["description"]
        return tool

    async def run(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run a tool: Python really runs, others wait the stated delay and give the recorded result."""
        self.ran += 1
        call = self._recorded[name].pop(0)
        if call.result is None:
            return await run_python(str(arguments["code"]))
        await asyncio.sleep(self.delay_s)
        return call.result

    async def run_json(self, name: str, arguments: str) -> str:
        """The same for arguments as JSON text."""
        return await self.run(name, json.loads(arguments))


Walk: TypeAlias = Callable[[Trajectory, Tools, Endpoint | None], Awaitable[list[str]]]
"""Builds an agent of one framework, lets it answer every user message, gives its final texts."""


def argument_model(name: str, parameters: Mapping[str, Any]) -> Any:
    """A pydantic model of a tool's arguments, for the frameworks that want one."""
    from pydantic import create_model

    kinds = {"string": str, "number": int | float, "boolean": bool, "array": list[Any], "object": dict[str, Any]}
    required = set(parameters.get("required", ()))
    fields: dict[str, Any] = {
        key: (kinds[spec["type"]], ...) if key in required else (kinds[spec["type"]] | None, None)
        for key, spec in parameters["properties"].items()
    }
    return create_model(f"{name}_arguments", **fields)
