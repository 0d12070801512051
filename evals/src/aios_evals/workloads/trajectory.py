"""A recorded agent run: what the user said, what the assistant answered, which tools it called with which results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A tool call; `result` None means that the tool really runs."""

    name: str
    arguments: dict[str, Any]
    result: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """One answer of the model: text, and at most some tool calls."""

    text: str
    calls: tuple[RecordedCall, ...] = ()

    def forced(self) -> str:
        """The answer as the model writes it: text, then tool calls in the Hermes format of the replay model."""
        calls = "".join(
            f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': call.arguments})}\n</tool_call>"
            for call in self.calls
        )
        return self.text + calls


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user said and the steps up to the answer that ends with text alone."""

    user: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A whole run. `tools` are OpenAI function schemas by name."""

    id: str
    system: str
    turns: tuple[Turn, ...]
    tools: Mapping[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    @property
    def steps(self) -> list[Step]:
        """All answers in order: the n-th call to the model gives the n-th."""
        return [step for turn in self.turns for step in turn.steps]

    def cut(self, steps: int) -> Trajectory:
        """The first answers only; the last turn then ends where it is cut, at a text answer before the cut."""
        kept: list[Turn] = []
        room = steps
        for turn in self.turns:
            if len(turn.steps) > room:
                break
            kept.append(turn)
            room -= len(turn.steps)
        return Trajectory(self.id, self.system, tuple(kept or self.turns[:1]), self.tools)


def schema_of(name: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A function schema that admits every recorded call: property types from the values, required if always there."""
    properties: dict[str, dict[str, Any]] = {}
    for sample in samples:
        for key, value in sample.items():
            properties.setdefault(key, _type_of(value))
    required = [key for key in properties if all(key in sample for sample in samples)]
    return {
        "name": name,
        "description": name.replace("_", " "),
        "parameters": {"type": "object", "properties": properties, "required": required},
    }


def _type_of(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int | float):
        return {"type": "number"}
    if isinstance(value, list):
        return {"type": "array", "items": _type_of(value[0]) if value else {}}
    return {"type": "object"} if isinstance(value, dict) else {"type": "string"}
