"""Who asks: one run of an agent as the policy sees it, and what is decided about it."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

Effect: TypeAlias = Literal["allow", "ask", "deny"]


class Subject(NamedTuple):
    """A run of an agent. Its principal is proved by the connection; the rest is what it says of itself.

    `agent` is the full name; rights on spaces and grants belong to the outermost agent, of `team/calc` the team.
    """

    principal: str
    group: str
    agent: str
    framework: str = ""

    @property
    def root(self) -> str:
        """The outermost agent's name."""
        return self.agent.partition("/")[0]


class Question(NamedTuple):
    """What a rule of `ask` wants of the person: how long to wait, and what silence means."""

    rule: str
    timeout_s: float
    default: Literal["allow", "deny"]

    def stricter(self, other: Question | None) -> Question:
        """Of two questions about one call, the one that is asked: silence denies first, then the shorter wait."""
        if other is None:
            return self
        return min(self, other, key=lambda each: (each.default != "deny", each.timeout_s, each.rule))


class Decision(NamedTuple):
    """What was decided, and the words for the rule that decided."""

    effect: Effect
    rule: str
    question: Question | None = None
