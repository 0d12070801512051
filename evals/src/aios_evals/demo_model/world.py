"""The small world a conversation happens in: its price list, notes and tools."""

import copy
import json
from dataclasses import dataclass, field
from typing import Final, Literal

from aios_evals.demo_model.tools import Notes, calculator, lookup

Status = Literal["ok", "missing", "failed"]
#: How tool results look: as the tools give them, or as frameworks and other tools dress them.
STYLES: Final = ("plain", "json", "label", "bullets")


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool gave back."""

    plain: str
    shown: str
    status: Status


@dataclass(slots=True)
class World:
    """Prices, notes, tools that fail, and the dress of the results."""

    prices: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])
    failing: dict[str, str] = field(default_factory=dict[str, str])
    style: str = "plain"
    missing: str = ""
    saved: str = "saved"

    def copy(self) -> "World":
        """An independent copy, to run the same job again."""
        return copy.deepcopy(self)

    def run(self, tool: str, argument: str) -> Result:
        """Run one tool call."""
        if tool in self.failing:
            return Result("", self.failing[tool], "failed")
        plain = self._plain(tool, argument)
        if plain.startswith("error"):
            return Result(plain, plain, "failed")
        if plain.startswith(("not found", "no notes")):
            return Result(plain, self.missing or plain, "missing")
        if tool == "recall" and self.style == "bullets":
            plain = "\n".join(f"- {line}" for line in plain.split("\n"))
        return Result(plain, self._dress(tool, argument, plain), "ok")

    def _plain(self, tool: str, argument: str) -> str:
        match tool:
            case "calculator":
                return calculator(argument)
            case "lookup":
                return lookup(argument, self.prices)
            case "recall":
                return Notes(self.notes).recall(argument)
            case "remember":
                self.notes.append(argument)
                return self.saved
            case _:
                return f"error: no tool {tool}"

    def _dress(self, tool: str, argument: str, plain: str) -> str:
        if self.style == "label" and tool == "lookup":
            return f"{argument}: {plain}"
        if self.style == "json" and "\n" not in plain:
            return json.dumps({"result": plain}, ensure_ascii=False)
        return plain
